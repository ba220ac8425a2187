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

// Run identifies a sweep. Only a sweep that has the same boot, engine and options can be
// resumed.
type Run struct {
	Boot    string    `json:"boot"`   // id of the host's boot, from which libvirt counts domain ids
	Engine  string    `json:"engine"` // with its signatures
	Options string    `json:"options"`
	Started time.Time `json:"started"`
}

// MaxAge is the age up to which a sweep can be resumed. What was clean then may not be
// clean now.
const MaxAge = 24 * time.Hour

// Bounds of a checkpoint.
const (
	maxDomains = 1 << 16
	maxLine    = 64 << 20 // bytes of one domain's result
)

// Key identifies one run of a domain.
type Key struct {
	UUID string `json:"uuid"`
	ID   int    `json:"id"` // libvirt's id, which changes with each start
}

// entry is a line of the file: the result of one domain.
type entry struct {
	Key
	Result finding.Scan `json:"result"`
}

// Checkpoint records what a sweep has done so far, so that it can be resumed after a
// deadline, a signal or a crash. It is a file with one JSON object per line: the Run, then
// the result of each domain that is done. The file is trusted as far as its directory is.
// If a crash has torn it, the lines before the tear count.
//
// A Checkpoint is for one goroutine. A nil Checkpoint keeps nothing.
type Checkpoint struct {
	file *os.File
	done map[Key]finding.Scan
}

// OpenCheckpoint begins the checkpoint of a sweep in the file at path. If resume is set and
// the file is that of a like sweep, the results in it are taken over. Otherwise they are
// forgotten. The caller closes the Checkpoint.
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

// read takes over the results in the file and returns the offset of their end.
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

// decode parses the result of one domain and checks that the domain is done.
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

// Find returns the result of a domain, if the interrupted sweep has done it.
func (c *Checkpoint) Find(k Key) (finding.Scan, bool) {
	if c == nil {
		return finding.Scan{}, false
	}
	d, ok := c.done[k]
	return d, ok
}

// Add notes a domain's result. It leaves out a failure, which is tried again when the sweep
// is resumed.
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

// Close ends the checkpoint. If complete is set, the sweep has done everything, and Close
// removes the file.
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

// Boot returns the id of the host's present boot, or "" if it cannot be read.
func Boot() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
