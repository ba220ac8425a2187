package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/atomicfile"
	"vmav.dev/vmav/internal/watch"
)

// Bounds of the spool.
const (
	maxSpooled = 256      // events
	maxEvent   = 16 << 10 // bytes of one
	suffix     = ".event"
)

// Put puts an event into a spool directory. It makes the directory if it does not exist.
func Put(dir string, h watch.Hint) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("spool a hook's event: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("spool a hook's event: %w", err)
	}
	if len(entries) >= maxSpooled {
		return fmt.Errorf("spool a hook's event: %s has %d already", dir, len(entries))
	}
	text, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("spool a hook's event: %w", err)
	}
	// Until the file is whole, its name has another end, so List does not read it.
	path := filepath.Join(dir, fmt.Sprintf("%d-%d%s", time.Now().UnixNano(), os.Getpid(), suffix))
	if err := atomicfile.WriteBytes(path, 0o600, text); err != nil {
		return fmt.Errorf("spool a hook's event: %w", err)
	}
	return nil
}

// Spooled is an event in a spool.
type Spooled struct {
	watch.Hint
	file string
}

// Done removes the event from the spool.
func (s Spooled) Done() { _ = os.Remove(s.file) }

// List returns the events in a spool. A directory that does not exist counts as empty.
// List removes files that are no events.
func List(dir string) ([]Spooled, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	var out []Spooled
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		if !strings.HasSuffix(e.Name(), suffix) {
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > time.Hour {
				_ = os.Remove(file) // a crash left it
			}
			continue
		}
		h, err := read(file)
		if err != nil {
			_ = os.Remove(file)
			continue
		}
		out = append(out, Spooled{h, file})
	}
	return out, nil
}

func read(file string) (h watch.Hint, err error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return h, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEvent))
	if err != nil {
		return h, err
	}
	return decode(text)
}

// decode reads an event as Put wrote it.
func decode(text []byte) (watch.Hint, error) {
	var h watch.Hint
	if err := json.Unmarshal(text, &h); err != nil {
		return watch.Hint{}, err
	}
	if err := h.Check(); err != nil {
		return watch.Hint{}, err
	}
	return h, nil
}
