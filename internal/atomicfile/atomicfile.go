package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Write writes what fill writes to a file at path. The file gets the permissions mode,
// whatever the umask is, and replaces a file that is there. Its directory must exist.
func Write(path string, mode fs.FileMode, fill func(io.Writer) error) error {
	f, err := Create(path, filepath.Dir(path), mode)
	if err != nil {
		return err
	}
	defer f.Discard()
	if err := fill(f); err != nil {
		return f.failed("write", err)
	}
	return f.Commit()
}

// WriteBytes is Write with content that is there already.
func WriteBytes(path string, mode fs.FileMode, content []byte) error {
	return Write(path, mode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// File is a file that has not got its name yet. The caller ends it with Commit, or with
// Discard; both may be called. It is not safe for concurrent use.
type File struct {
	pending *renameio.PendingFile
	path    string
}

// Create begins a file that Commit names path. Until then it lies in the directory dir,
// which must be on the same file system. mode is as in Write.
func Create(path, dir string, mode fs.FileMode) (*File, error) {
	p, err := renameio.NewPendingFile(path, renameio.WithTempDir(dir))
	f := &File{p, path}
	if err == nil {
		err = p.Chmod(mode)
	}
	if err != nil {
		defer f.Discard()
		return nil, f.failed("create", err)
	}
	return f, nil
}

// Write implements io.Writer.
func (f *File) Write(p []byte) (int, error) {
	n, err := f.pending.Write(p)
	if err != nil {
		err = f.failed("write", err)
	}
	return n, err
}

// Read implements io.Reader: it reads back what was written.
func (f *File) Read(p []byte) (int, error) { return f.pending.Read(p) }

// Seek implements io.Seeker.
func (f *File) Seek(offset int64, whence int) (int64, error) { return f.pending.Seek(offset, whence) }

// Sync writes what was written so far to the disk. Commit does so, too.
func (f *File) Sync() error {
	if err := f.pending.Sync(); err != nil {
		return f.failed("sync", err)
	}
	return nil
}

// Stat describes the file as it lies there without its name.
func (f *File) Stat() (fs.FileInfo, error) {
	st, err := f.pending.Stat()
	if err != nil {
		return nil, f.failed("stat", err)
	}
	return st, nil
}

// Commit writes the file to the disk, gives it its name, and writes its directory to the
// disk. The file is closed afterwards.
func (f *File) Commit() error {
	if err := f.pending.CloseAtomicallyReplace(); err != nil {
		return f.failed("write", err)
	}
	if err := syncDir(filepath.Dir(f.path)); err != nil {
		return f.failed("sync the directory of", err)
	}
	return nil
}

// Discard closes and removes the file, unless it has got its name.
func (f *File) Discard() {
	if f.pending != nil {
		_ = f.pending.Cleanup()
	}
}

// failed names the file that was to be written in an error of the one that was written.
func (f *File) failed(op string, err error) error {
	var named *fs.PathError
	if errors.As(err, &named) && named.Path == f.path {
		return err // it says so already
	}
	var p *fs.PathError
	var l *os.LinkError
	switch {
	case errors.As(err, &l):
		op, err = l.Op, l.Err
	case errors.As(err, &p) && (f.pending == nil || p.Path == f.pending.Name()):
		err = p.Err
	default:
		return fmt.Errorf("%s %s: %w", op, f.path, err)
	}
	return &fs.PathError{Op: op, Path: f.path, Err: err}
}

// syncDir writes a directory to the disk, where that is possible: it is not in a directory
// that may be written and not read, nor on each file system.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}
