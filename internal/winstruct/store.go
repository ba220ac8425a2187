package winstruct

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	homedir "github.com/mitchellh/go-homedir"

	"vmav.dev/vmav/internal/winstruct/cab"
)

// SystemDir is the directory of the host's profiles, for every user.
const SystemDir = "/var/lib/vmav/profiles"

const (
	fileSuffix = ".json.zst"
	packSuffix = ".pack"

	// PackLayer is the layer of the packs' kernels.
	PackLayer = "pack"
)

//go:embed builtin layouts
var builtin embed.FS

// Store finds profiles in four layers: the user's, the system's, the built-in ones, and the
// packs in the user's and the system's directory. The first layer that has a profile wins.
// Packs come last because a profile may have more of a build than a pack does. A file that
// cannot be read is an error only for the profile that it should contain. A Store keeps
// what it has loaded and is safe for concurrent use.
type Store struct {
	layers  []layer
	layouts layer // of builds without symbols: see NoGUID

	mu     sync.Mutex
	loaded map[string]*Profile // by key
	packs  map[string]openPack // by path
}

type layer struct {
	name string // "user", "system", "built-in"
	dir  string // "" for built-in
	fsys fs.FS
}

// Entry is one profile in the store.
type Entry struct {
	Identity Identity
	Version  string
	Arch     string
	Sources  []Source
	Layer    string // "user", "system", "built-in", "pack" or "layout"
	Name     string // of its file
	Path     string // "" for built-in
	Err      error  // why it cannot be used

	layout string // of a kernel in a pack, the same for all that have the same
}

// UserDir returns the directory of the user's own profiles.
func UserDir() (string, error) {
	if data := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
		return filepath.Join(data, "vmav", "profiles"), nil
	}
	home, err := homedir.Dir()
	if err != nil {
		return "", fmt.Errorf("find the home directory for profiles: %w", err)
	}
	return filepath.Join(home, ".local", "share", "vmav", "profiles"), nil
}

// OpenStore opens the layers of this host and user. A user without a home directory has no
// layer. A user who may not read SystemDir does without that layer.
func OpenStore() *Store {
	s := &Store{}
	if dir, err := UserDir(); err == nil {
		s.layers = append(s.layers, layer{"user", dir, os.DirFS(dir)})
	}
	if _, err := os.Stat(SystemDir); !errors.Is(err, fs.ErrPermission) {
		s.layers = append(s.layers, layer{"system", SystemDir, os.DirFS(SystemDir)})
	}
	b := BuiltIn()
	s.layers, s.layouts = append(s.layers, b.layers...), b.layouts
	return s
}

// BuiltIn returns a store with only the built-in profiles.
func BuiltIn() *Store {
	sub := func(dir string) fs.FS {
		fsys, err := fs.Sub(builtin, dir)
		if err != nil {
			panic(err) // the directory is embedded
		}
		return fsys
	}
	return &Store{layers: []layer{{"built-in", "", sub("builtin")}}, layouts: layer{"layout", "", sub("layouts")}}
}

// FileName returns the name of a profile's file in a store.
func FileName(id Identity) string {
	return strings.TrimSuffix(id.PDB, ".pdb") + "-" + id.Key() + fileSuffix
}

// Find returns the profile of a kernel build from the first layer that has it. It fails
// with a *MissingError if none has.
func (s *Store) Find(id Identity) (*Profile, error) {
	id.PDB, id.GUID = strings.ToLower(id.PDB), strings.ToUpper(id.GUID)
	if err := id.Check(); err != nil {
		return nil, err
	}
	if id.GUID == NoGUID {
		return nil, &MissingError{Identity: id} // a layout is of no image
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.loaded[id.Key()]; p != nil {
		return p, nil
	}
	for _, l := range s.layers {
		p, err := l.load(FileName(id))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if p.Identity != id {
			return nil, fmt.Errorf("%s profile %s holds %s: it was renamed or replaced", l.name, FileName(id), p.Identity)
		}
		if s.loaded == nil {
			s.loaded = make(map[string]*Profile)
		}
		s.loaded[id.Key()] = p
		return p, nil
	}
	p, err := inPacks(s, id, (*KernelPack).Find)
	if err != nil {
		return nil, err
	}
	if s.loaded == nil {
		s.loaded = make(map[string]*Profile)
	}
	s.loaded[id.Key()] = p
	return p, nil
}

// FindPacked does what Find does without loading the profile. It returns the content of the
// file in the first layer that has it, for another process to load.
func (s *Store) FindPacked(id Identity) ([]byte, error) {
	id.PDB, id.GUID = strings.ToLower(id.PDB), strings.ToUpper(id.GUID)
	if err := id.Check(); err != nil {
		return nil, err
	}
	for _, l := range s.layers {
		packed, err := fs.ReadFile(l.fsys, FileName(id))
		if !errors.Is(err, fs.ErrNotExist) {
			return packed, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return inPacks(s, id, (*KernelPack).FindPacked)
}

func (l layer) load(name string) (*Profile, error) {
	packed, err := fs.ReadFile(l.fsys, name)
	if err != nil {
		return nil, err
	}
	p, err := loadBytes(packed, true)
	if err != nil {
		return nil, fmt.Errorf("load %s profile %s: %w", l.name, filepath.Join(l.dir, name), err)
	}
	return p, nil
}

// head does what load does, without structures and symbols.
func (l layer) head(name string) (*Profile, error) {
	packed, err := fs.ReadFile(l.fsys, name)
	if err != nil {
		return nil, err
	}
	p, err := loadHead(packed)
	if err != nil {
		return nil, fmt.Errorf("load %s profile %s: %w", l.name, filepath.Join(l.dir, name), err)
	}
	return p, nil
}

// List returns every profile of the store, ordered by version, including those that a
// higher layer hides. A damaged profile is listed with its error.
func (s *Store) List() []Entry {
	out := append(list(s.layers), s.packed()...)
	sortEntries(out)
	return out
}

// Layouts returns the layouts of builds whose symbols are not known, ordered by version.
func (s *Store) Layouts() []Entry {
	if s.layouts.fsys == nil {
		return nil
	}
	return list([]layer{s.layouts})
}

func list(layers []layer) []Entry {
	var out []Entry
	for _, l := range layers {
		names, err := fs.Glob(l.fsys, "*"+fileSuffix)
		if err != nil {
			panic(err) // a bad pattern
		}
		for _, name := range names {
			e := Entry{Layer: l.name, Name: name}
			if l.dir != "" {
				e.Path = filepath.Join(l.dir, name)
			}
			p, err := l.head(name)
			if err != nil {
				e.Err = err
				e.Identity.PDB = name
			} else {
				e.Identity, e.Version, e.Arch, e.Sources = p.Identity, p.Version, p.Arch, p.Sources
			}
			out = append(out, e)
		}
	}
	sortEntries(out)
	return out
}

func sortEntries(out []Entry) {
	sort.SliceStable(out, func(i, j int) bool { return versionLess(out[i].Version, out[j].Version) })
}

// Open loads the profile of an entry, even one that a higher layer hides.
func (s *Store) Open(e Entry) (*Profile, error) {
	if e.Layer == PackLayer {
		return inPack(s, e, (*KernelPack).Find)
	}
	for _, l := range append(s.layers[:len(s.layers):len(s.layers)], s.layouts) {
		if l.name == e.Layer {
			return l.load(e.Name)
		}
	}
	return nil, fmt.Errorf("no layer %q of profiles", e.Layer)
}

// Packed returns the content of an entry's file. For a kernel in a pack it is a file with
// what the pack has of it.
func (s *Store) Packed(e Entry) ([]byte, error) {
	if e.Layer == PackLayer {
		return inPack(s, e, (*KernelPack).FindPacked)
	}
	for _, l := range append(s.layers[:len(s.layers):len(s.layers)], s.layouts) {
		if l.name == e.Layer {
			return fs.ReadFile(l.fsys, e.Name)
		}
	}
	return nil, fmt.Errorf("no layer %q of profiles", e.Layer)
}

// Near returns the store's profiles and layouts in the order of their distance from a
// version of Windows: by the difference of the build numbers, and among equal ones the
// latest revision first. Profiles without a version, and those that cannot be read, are
// left out. Of the kernels in a pack that have one layout the nearest is there.
func (s *Store) Near(version string) []Entry {
	want := parseVersion(version)
	var out []Entry
	for _, e := range append(s.List(), s.Layouts()...) {
		if e.Err == nil && e.Version != "" {
			out = append(out, e)
		}
	}
	distance := func(e Entry) int {
		v := parseVersion(e.Version)
		return max(v[2]-want[2], want[2]-v[2])
	}
	slices.SortStableFunc(out, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(distance(a), distance(b)), cmp.Compare(parseVersion(b.Version)[3], parseVersion(a.Version)[3]))
	})
	return firstOfLayout(out)
}

// parseVersion reads the numbers of a version. Those that are missing are 0.
func parseVersion(v string) (out [4]int) {
	_, _ = fmt.Sscanf(v, "%d.%d.%d.%d", &out[0], &out[1], &out[2], &out[3])
	return out
}

func versionLess(a, b string) bool {
	x, y := parseVersion(a), parseVersion(b)
	for i := range x {
		if x[i] != y[i] {
			return x[i] < y[i]
		}
	}
	return false
}

// Put writes p into a directory of profiles, the user's or SystemDir, and returns the
// file's path. The file appears completely or not at all.
func Put(dir string, p *Profile) (string, error) { return put(dir, p, (*Profile).Save) }

// PutSmall does what Put does with the best compression.
func PutSmall(dir string, p *Profile) (string, error) { return put(dir, p, (*Profile).SaveSmall) }

func put(dir string, p *Profile, save func(*Profile, io.Writer) error) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("store profile %s: %w", p.Identity, err)
	}
	path := filepath.Join(dir, FileName(p.Identity))
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o644))
	if err != nil {
		return "", fmt.Errorf("store profile %s: %w", p.Identity, err)
	}
	defer func() { _ = f.Cleanup() }()
	if err = save(p, f); err == nil {
		err = f.CloseAtomicallyReplace()
	}
	if err != nil {
		return "", fmt.Errorf("store profile %s: %w", p.Identity, err)
	}
	return path, nil
}

// Open reads a profile from a file of any form: vmav's own, a Volatility 3 symbol file or a
// PDB. The file's content decides, not its name.
func Open(path string) (*Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, 256)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	head = head[:n]
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte("Microsoft C/C++ ")), bytes.HasPrefix(head, []byte(cab.Magic)):
		return ImportPDBFile(path)
	case bytes.HasPrefix(head, zstdMagic), bytes.Contains(head, []byte(`"vmav_profile"`)):
		p, err := LoadHandMade(f)
		if err != nil {
			return nil, fmt.Errorf("load profile %s: %w", path, err)
		}
		return p, nil
	}
	return ImportISFFile(path)
}
