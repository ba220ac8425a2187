package sweep

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/finding"
)

// Run is what a run is. Only one that is the same can be resumed.
type Run struct {
	Boot    string    `json:"boot"`   // of the host: domain ids count from its start
	Engine  string    `json:"engine"` // with its signatures
	Options string    `json:"options"`
	Started time.Time `json:"started"`
}

// MaxAge is how old a run may be to be resumed: what was clean then may not be now.
const MaxAge = 24 * time.Hour

// Bounds of a checkpoint.
const (
	maxDomains = 1 << 16
	maxLine    = 64 << 20 // bytes of one domain's result
)

// Key is one run of a domain.
type Key struct {
	UUID string `json:"uuid"`
	ID   int    `json:"id"` // libvirt's: another one after each start
}

type entry struct {
	Key
	Result finding.Scan `json:"result"`
}

// Checkpoint is what a sweep has done so far, so that one that was interrupted, by its
// deadline, a signal or a crash, can be resumed. It is a file of one JSON object a line: what
// the run is, then the result of each domain that is done. The file is trusted as far as its
// directory is. One that is torn by a crash counts up to the tear.
//
// A Checkpoint is for one goroutine. A nil one keeps nothing.
type Checkpoint struct {
	file *os.File
	done map[Key]finding.Scan
}

// OpenCheckpoint begins the checkpoint of a run at a path. With resume it takes over what an
// earlier run of the same kind has done. Without, it forgets that.
func OpenCheckpoint(path string, run Run, resume bool) (*Checkpoint, error) {
	c := &Checkpoint{done: make(map[Key]finding.Scan)}
	flags := os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("checkpoint of the sweep: %w", err)
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("checkpoint of the sweep: %w", err)
	}
	c.file = f
	end := int64(0)
	if resume {
		end, err = c.read(run)
	}
	if err == nil {
		err = f.Truncate(end)
	}
	if err == nil {
		_, err = f.Seek(end, 0)
	}
	if err == nil && end == 0 {
		err = c.write(run)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("checkpoint of the sweep: %w", err)
	}
	return c, nil
}

// read takes over what is there and returns where that ends.
func (c *Checkpoint) read(run Run) (end int64, err error) {
	in := bufio.NewReaderSize(c.file, 1<<20)
	next := func() ([]byte, error) {
		var line []byte
		for {
			part, err := in.ReadSlice('\n')
			line = append(line, part...)
			if !errors.Is(err, bufio.ErrBufferFull) || len(line) > maxLine {
				return line, err
			}
		}
	}
	line, err := next()
	var was Run
	if err != nil || json.Unmarshal(line, &was) != nil {
		return 0, nil
	}
	age := run.Started.Sub(was.Started)
	if was.Boot != run.Boot || was.Engine != run.Engine || was.Options != run.Options || age < 0 || age > MaxAge {
		return 0, nil
	}
	end = int64(len(line))
	for len(c.done) < maxDomains {
		line, err := next()
		if err != nil {
			break // the end, or a line that a crash has torn
		}
		e, err := decode(line)
		if err != nil {
			break
		}
		e.Result.Resumed = true
		c.done[e.Key] = e.Result
		end += int64(len(line))
	}
	return end, nil
}

// decode reads the result of one domain.
func decode(line []byte) (entry, error) {
	var e entry
	d := json.NewDecoder(bytes.NewReader(line))
	if err := d.Decode(&e); err != nil {
		return entry{}, err
	}
	switch e.Result.Status {
	case finding.StatusScanned, finding.StatusIncomplete, finding.StatusSkipped:
	default:
		return entry{}, fmt.Errorf("a domain that is %q is not done", e.Result.Status)
	}
	if e.UUID == "" || e.Result.UUID != e.UUID {
		return entry{}, errors.New("a result of another domain")
	}
	return e, nil
}

// Find is the result of a domain that the interrupted run had done.
func (c *Checkpoint) Find(k Key) (finding.Scan, bool) {
	if c == nil {
		return finding.Scan{}, false
	}
	d, ok := c.done[k]
	return d, ok
}

// Add notes a domain's result, unless it is none: what failed is tried again.
func (c *Checkpoint) Add(k Key, d finding.Scan) error {
	if c == nil {
		return nil
	}
	if d.Status == finding.StatusFailed || k.UUID == "" {
		return nil
	}
	return c.write(entry{k, d})
}

func (c *Checkpoint) write(v any) error {
	text, err := json.Marshal(v)
	if err == nil {
		_, err = c.file.Write(append(text, '\n'))
	}
	if err == nil {
		err = c.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("checkpoint of the sweep: %w", err)
	}
	return nil
}

// Close ends the checkpoint. complete says that the run has done all: there is nothing to
// resume then.
func (c *Checkpoint) Close(complete bool) error {
	if c == nil {
		return nil
	}
	var err error
	if complete {
		err = os.Remove(c.file.Name())
	}
	return errors.Join(err, c.file.Close())
}

// Boot names the host's run of now.
func Boot() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
