package winstruct

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"vmav.dev/vmav/internal/winstruct/pack"
)

// packName is the form of a pack's name in a store.
var packName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\` + packSuffix + `$`)

// CheckPackName returns an error if a store finds no pack under a file name.
func CheckPackName(name string) error {
	if !packName.MatchString(name) {
		return fmt.Errorf("%q is no name of a pack: it has letters, digits, - and _, and ends in %s", name, packSuffix)
	}
	return nil
}

// openPack is a pack that was opened, and the file that it was.
type openPack struct {
	of  fs.FileInfo
	k   *KernelPack
	err error
}

// packFile is the place of a pack.
type packFile struct {
	name, path string
	fsys       fs.FS
}

// packFiles are the packs in the directories of the store, the user's first.
func (s *Store) packFiles() (out []packFile) {
	for _, l := range s.layers {
		if l.dir == "" {
			continue
		}
		names, err := fs.Glob(l.fsys, "*"+packSuffix)
		if err != nil {
			panic(err) // a bad pattern
		}
		for _, name := range names {
			out = append(out, packFile{name, filepath.Join(l.dir, name), l.fsys})
		}
	}
	return out
}

// pack opens a pack, unless the store has it open and the file is the same. The caller
// holds s.mu.
func (s *Store) pack(f packFile) (*KernelPack, error) {
	info, err := fs.Stat(f.fsys, f.name)
	if err != nil {
		return nil, fmt.Errorf("open pack %s: %w", f.path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open pack %s: it is no regular file", f.path)
	}
	if o, ok := s.packs[f.path]; ok && os.SameFile(o.of, info) && o.of.Size() == info.Size() && o.of.ModTime().Equal(info.ModTime()) {
		return o.k, o.err
	}
	o := openPack{of: info}
	if o.k, o.err = readPack(f); o.err != nil {
		o.err = fmt.Errorf("open pack %s: %w", f.path, o.err)
	}
	if s.packs == nil {
		s.packs = make(map[string]openPack)
	}
	s.packs[f.path] = o
	return o.k, o.err
}

func readPack(f packFile) (*KernelPack, error) {
	file, err := f.fsys.Open(f.name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, pack.MaxSize+1))
	if err != nil {
		return nil, err
	}
	return OpenKernelPack(data)
}

// OpenKernelPackFile opens a pack in a file.
func OpenKernelPackFile(path string) (*KernelPack, error) {
	return (&Store{}).pack(packFile{filepath.Base(path), path, os.DirFS(filepath.Dir(path))})
}

// inPacks finds a kernel in the first pack that has it. The caller holds s.mu.
func inPacks[T any](s *Store, id Identity, find func(*KernelPack, Identity) (T, error)) (T, error) {
	var none T
	absent := &MissingError{Identity: id}
	for _, f := range s.packFiles() {
		k, err := s.pack(f)
		if err != nil {
			if absent.Unread != nil {
				err = fmt.Errorf("%w; %w", absent.Unread, err)
			}
			absent.Unread = err
			continue
		}
		found, err := find(k, id)
		if err == nil {
			return found, nil
		}
		if !errors.Is(err, ErrNoProfile) {
			return none, fmt.Errorf("load from pack %s: %w", f.path, err)
		}
	}
	return none, absent
}

// inPack finds the kernel of an entry.
func inPack[T any](s *Store, e Entry, find func(*KernelPack, Identity) (T, error)) (T, error) {
	var none T
	if e.Err != nil {
		return none, e.Err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.packFiles() {
		if f.path != e.Path {
			continue
		}
		k, err := s.pack(f)
		if err != nil {
			return none, err
		}
		found, err := find(k, e.Identity)
		if err != nil {
			return none, fmt.Errorf("load from pack %s: %w", f.path, err)
		}
		return found, nil
	}
	return none, fmt.Errorf("pack %s is gone", e.Path)
}

// packed lists the kernels of every pack. A pack that cannot be read is one entry with its
// error.
func (s *Store) packed() (out []Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.packFiles() {
		at := Entry{Layer: PackLayer, Name: f.name, Path: f.path}
		k, err := s.pack(f)
		if err != nil {
			at.Identity.PDB, at.Err = f.name, err
			out = append(out, at)
			continue
		}
		for i := range k.Len() {
			e, err := k.Entry(i)
			if err != nil {
				e.Identity.PDB, e.Err = f.name, fmt.Errorf("pack %s: %w", f.path, err)
			}
			e.Layer, e.Name, e.Path = at.Layer, at.Name, at.Path
			if err == nil {
				head, _ := k.Head(i)
				e.layout = fmt.Sprintf("%s %d", f.path, head.Layout)
			}
			out = append(out, e)
		}
	}
	return out
}

// Packs returns the paths of the packs in the store's directories.
func (s *Store) Packs() (paths []string) {
	for _, f := range s.packFiles() {
		paths = append(paths, f.path)
	}
	return paths
}

// DirStore returns a store with the profiles and packs of one directory, and no others. Its
// layer is "user".
func DirStore(dir string) *Store { return &Store{layers: []layer{{"user", dir, os.DirFS(dir)}}} }

// PackName is the file name of a pack in a store.
func PackName(name string) string { return strings.TrimSuffix(name, packSuffix) + packSuffix }
