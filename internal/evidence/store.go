package evidence

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/atomicfile"
)

const (
	suffix   = ".sealed"
	lockName = "lock"
	// If nothing was written to an unfinished file for staleAfter, its writer is taken
	// for dead.
	staleAfter = time.Hour

	lockWait, lockPoll = 30 * time.Second, 5 * time.Millisecond
)

// Errors a caller decides on; test with errors.Is.
var (
	// ErrFull reports that there is no room in the store.
	ErrFull = errors.New("the evidence store is full")
	// ErrNoItem reports that nothing is stored under a name.
	ErrNoItem = errors.New("no such evidence")
)

// Limits bound a store. Zero means no limit.
type Limits struct {
	Age  time.Duration // since an item was last stored
	Size int64         // of all items, in bytes on disk
}

// Store is a directory of items. Several processes may use it at once. It holds nothing
// open, so there is nothing to close.
type Store struct {
	dir    string
	limits Limits
}

// Open opens the store in a directory. If the directory does not exist, Open makes it
// with mode 0700.
func Open(dir string, limits Limits) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return nil, fmt.Errorf("open evidence: write to %s: %w", dir, err)
	}
	return &Store{dir, limits}, nil
}

// OpenExisting opens the store in a directory to read it. If there is none, the error
// wraps fs.ErrNotExist.
func OpenExisting(dir string) (*Store, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	return &Store{dir: dir}, nil
}

// Item describes a stored content.
type Item struct {
	Header
	Path   string    `json:"path"`
	Sealed int64     `json:"sealed_size"` // on disk, in bytes
	Last   time.Time `json:"last_stored"`
}

func (s *Store) path(sum string) string {
	return filepath.Join(s.dir, sum[:2], sum+suffix)
}

// Put stores a content, unless it is stored already, and returns its SHA-256 in
// hexadecimal. Put sets the sum, size and time of the header. When it returns nil, the
// content is on disk.
func (s *Store) Put(h Header, content []byte) (string, error) {
	sum := sha256.Sum256(content)
	h.SHA256, h.Size, h.Stored = hex.EncodeToString(sum[:]), uint64(len(content)), time.Now().UTC()
	if err := s.put(h, content); err != nil {
		return "", fmt.Errorf("store evidence %s (%d bytes): %w", h.SHA256[:12], h.Size, err)
	}
	return h.SHA256, nil
}

func (s *Store) put(h Header, content []byte) error {
	if len(content) > MaxContent {
		return fmt.Errorf("it is larger than the %d bytes that one item may have", MaxContent)
	}
	if there, err := s.again(h); err != nil || there {
		return err
	}
	// This is not under the lock, because large contents take time.
	f, err := atomicfile.Create(s.path(h.SHA256), s.dir, 0o400)
	if err != nil {
		return err
	}
	defer f.Discard() // unless it got its name
	if err := write(f, h, content); err != nil {
		return err
	}
	return s.enter(f, h)
}

// again tells whether an item is there. If so, it notes that it was stored once more.
func (s *Store) again(h Header) (bool, error) {
	unlock, err := s.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	return s.touch(s.path(h.SHA256), h)
}

// enter gives the file of a whole item its name, if there is room for it.
func (s *Store) enter(f *atomicfile.File, h Header) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	path := s.path(h.SHA256)
	// Another process may have stored it meanwhile.
	if there, err := s.touch(path, h); err != nil || there {
		return err
	}
	if err := s.makeRoom(st.Size()); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := f.Commit(); err != nil {
		return err
	}
	return syncDir(s.dir) // the item's directory may be new
}

// touch tells whether an item is there and whole. If so, it notes that the item was
// stored once more. If not, the caller writes it again.
func (s *Store) touch(path string, h Header) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	p, err := readPreamble(f, st.Size())
	if err != nil || p.header.SHA256 != h.SHA256 || p.header.Size != h.Size {
		return false, nil
	}
	return true, os.Chtimes(path, time.Time{}, h.Stored)
}

// write writes an item to a file, and the file to the disk.
func write(f *atomicfile.File, h Header, content []byte) error {
	err := sealItem(f, h, content)
	if err == nil {
		err = trail(f)
	}
	if err == nil {
		err = f.Sync()
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lock keeps other processes from writing. It waits until they are done, but at most
// lockWait: one of them may be a stopped process.
func (s *Store) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(lockPoll) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// Extract writes the content of an item to w. Most likely it is malware. What was
// written is the content only if the error is nil.
func (s *Store) Extract(sum string, w io.Writer) (Header, error) {
	f, size, err := s.open(sum)
	if err != nil {
		return Header{}, err
	}
	defer f.Close()
	h, err := openItem(f, size, w)
	if err == nil && h.SHA256 != sum {
		err = fmt.Errorf("%w: it is of another content, %s", ErrFormat, h.SHA256)
	}
	if err != nil {
		return Header{}, fmt.Errorf("evidence %s: %w", f.Name(), err)
	}
	return h, nil
}

func (s *Store) open(sum string) (*os.File, int64, error) {
	if !isSum(sum) {
		return nil, 0, fmt.Errorf("evidence %q: a name is a SHA-256, 64 hexadecimal digits", clip(sum))
	}
	f, err := os.Open(s.path(sum))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("evidence %s: %w", sum, ErrNoItem)
	}
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// Show returns what an item says of itself. It does not check the content.
func (s *Store) Show(sum string) (Item, error) {
	f, size, err := s.open(sum)
	if err != nil {
		return Item{}, err
	}
	defer f.Close()
	p, err := readPreamble(f, size)
	if err != nil {
		return Item{}, fmt.Errorf("evidence %s: %w", f.Name(), err)
	}
	st, err := f.Stat()
	if err != nil {
		return Item{}, err
	}
	return Item{p.header, f.Name(), size, st.ModTime().UTC()}, nil
}

func isSum(s string) bool {
	return len(s) == 2*sha256.Size && strings.Trim(s, "0123456789abcdef") == ""
}

// Find returns the name that begins with a prefix of at least four digits. If there is
// none, the error wraps ErrNoItem.
func (s *Store) Find(prefix string) (string, error) {
	prefix = strings.ToLower(prefix)
	if isSum(prefix) {
		return prefix, nil
	}
	if len(prefix) < 4 || strings.Trim(prefix, "0123456789abcdef") != "" {
		return "", fmt.Errorf("evidence %q: a name is a SHA-256, or its first digits, at least 4", clip(prefix))
	}
	files, err := os.ReadDir(filepath.Join(s.dir, prefix[:2]))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var found []string
	for _, f := range files {
		if sum, ok := strings.CutSuffix(f.Name(), suffix); ok && isSum(sum) && strings.HasPrefix(sum, prefix) {
			found = append(found, sum)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("evidence %s: %w", prefix, ErrNoItem)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("evidence %s: %d names begin so", prefix, len(found))
}
