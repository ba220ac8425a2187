package evidence

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// stored is a file of the store.
type stored struct {
	path string
	sum  string
	size int64
	last time.Time
}

// walk returns all items. The item that was stored longest ago comes first.
func (s *Store) walk() ([]stored, error) {
	dirs, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var out []stored
	for _, d := range dirs {
		if !d.IsDir() || len(d.Name()) != 2 {
			continue
		}
		files, err := os.ReadDir(filepath.Join(s.dir, d.Name()))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			sum, ok := strings.CutSuffix(f.Name(), suffix)
			if !ok || !isSum(sum) || sum[:2] != d.Name() {
				continue // not ours
			}
			st, err := f.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue // pruned meanwhile
			}
			if err != nil {
				return nil, err
			}
			out = append(out, stored{filepath.Join(s.dir, d.Name(), f.Name()), sum, st.Size(), st.ModTime()})
		}
	}
	slices.SortFunc(out, func(a, b stored) int { return cmp.Or(a.last.Compare(b.last), cmp.Compare(a.sum, b.sum)) })
	return out, nil
}

// List returns all items. The item that was stored longest ago comes first. The error
// names files that are not whole items; the others are in the result all the same.
func (s *Store) List() ([]Item, error) {
	all, err := s.walk()
	if err != nil {
		return nil, fmt.Errorf("list evidence: %w", err)
	}
	var out []Item
	var bad []error
	for _, e := range all {
		it, err := s.Show(e.sum)
		switch {
		case errors.Is(err, ErrNoItem): // pruned meanwhile
		case err != nil:
			bad = append(bad, err)
		default:
			out = append(out, it)
		}
	}
	return out, errors.Join(bad...)
}

// makeRoom makes room for an item of a size, or fails. The caller holds the lock.
func (s *Store) makeRoom(size int64) error {
	if s.limits.Size == 0 {
		return nil
	}
	if size > s.limits.Size {
		return fmt.Errorf("%w: %d bytes, sealed, are more than its limit of %d", ErrFull, size, s.limits.Size)
	}
	all, err := s.walk()
	if err != nil {
		return err
	}
	used := total(all)
	if used+size <= s.limits.Size {
		return nil
	}
	if all, err = s.removeOld(all); err != nil {
		return err
	}
	if used = total(all); used+size > s.limits.Size {
		return fmt.Errorf("%w: %d of %d bytes are used, %d are needed, and nothing in it is old enough to be removed", ErrFull, used, s.limits.Size, size)
	}
	return nil
}

func total(all []stored) (n int64) {
	for _, e := range all {
		n += e.size
	}
	return n
}

// Pruned is what Prune removed and what it left.
type Pruned struct {
	Items int   `json:"items"`
	Bytes int64 `json:"bytes"`
	Left  int   `json:"left"`
	Used  int64 `json:"used"`
}

// Prune removes the items that are older than the store's limit of age. Then it removes
// the oldest items until the limit of size is kept. It also removes files that dead
// writers left half written.
func (s *Store) Prune() (Pruned, error) {
	p, err := s.prune()
	if err != nil {
		return p, fmt.Errorf("prune evidence: %w", err)
	}
	return p, nil
}

func (s *Store) prune() (Pruned, error) {
	unlock, err := s.lock()
	if err != nil {
		return Pruned{}, err
	}
	defer unlock()
	if err := s.removeUnfinished(); err != nil {
		return Pruned{}, err
	}
	all, err := s.walk()
	if err != nil {
		return Pruned{}, err
	}
	before, used := len(all), total(all)
	if all, err = s.removeOld(all); err != nil {
		return Pruned{}, err
	}
	left := total(all)
	for s.limits.Size > 0 && left > s.limits.Size {
		if err := remove(all[0]); err != nil {
			return Pruned{}, err
		}
		left -= all[0].size
		all = all[1:]
	}
	return Pruned{before - len(all), used - left, len(all), left}, nil
}

// removeOld removes the items that are too old and returns the others.
func (s *Store) removeOld(all []stored) ([]stored, error) {
	limit := time.Now().Add(-s.limits.Age)
	for s.limits.Age > 0 && len(all) > 0 && all[0].last.Before(limit) {
		if err := remove(all[0]); err != nil {
			return all, err
		}
		all = all[1:]
	}
	return all, nil
}

func remove(e stored) error {
	if err := os.Remove(e.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(filepath.Dir(e.path)) // succeeds only if it is empty
	return nil
}

// unfinished tells whether this is the name of a file that atomicfile has not finished.
func unfinished(name string) bool {
	return strings.HasPrefix(name, ".") && strings.Contains(name, suffix)
}

// removeUnfinished removes what dead writers left.
func (s *Store) removeUnfinished() error {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if !unfinished(f.Name()) {
			continue
		}
		if st, err := f.Info(); err != nil || time.Since(st.ModTime()) < staleAfter {
			continue // it is finished now, or somebody writes to it
		}
		if err := os.Remove(filepath.Join(s.dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
