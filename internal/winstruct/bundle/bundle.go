// Package bundle carries profiles and packs of kernels to hosts that cannot reach a symbol
// server, in one file that is signed with the operator's key.
//
// A bundle is a tar archive: manifest.json, which lists the profiles and packs with their
// SHA-256; manifest.sig, the Ed25519 signature of the manifest; and the files as a store
// has them, the profiles first. Nothing in a bundle is used before its signature is verified, and nothing is
// stored before all of it is verified. The package imports winstruct and no other package
// of the project.
package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/pack"
)

// Test for these with errors.Is.
var (
	ErrNotBundle = errors.New("not a bundle of profiles")
	ErrSignature = errors.New("the bundle is not signed by a key that is trusted")
	ErrCorrupt   = errors.New("corrupt bundle")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

const (
	manifestName  = "manifest.json"
	signatureName = "manifest.sig"

	// Readers of format 1 know no packs. A bundle without one is of format 1.
	format          = 1
	formatWithPacks = 2

	// The signature is over this line and the manifest, so that no signature of anything
	// else by the same key fits.
	signedPrefix = "vmav profile bundle\n"

	maxManifest = 16 << 20
	maxProfiles = 1 << 16
	maxPacks    = 1 << 6
	maxProfile  = 64 << 20 // bytes of one
	maxTotal    = 8 << 30  // bytes of all
)

type manifest struct {
	Format   int       `json:"vmav_bundle"`
	Created  time.Time `json:"created"`
	Profiles []item    `json:"profiles"`
	Packs    []packed  `json:"packs,omitempty"`
}

// packed is a pack in the manifest.
type packed struct {
	Name    string `json:"name"`
	Kernels int    `json:"kernels"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
}

type item struct {
	Name    string             `json:"name"`
	Build   winstruct.Identity `json:"build"`
	Version string             `json:"version,omitempty"`
	Size    int64              `json:"size"`
	SHA256  string             `json:"sha256"`
}

// Profile is one profile to export: its entry in a store and its file.
type Profile struct {
	Entry  winstruct.Entry
	Packed []byte
}

// Pack is one pack of kernels to export: the name under which a store has it
// (winstruct.CheckPackName), and its content.
type Pack struct {
	Name string
	Data []byte
}

// Content is what a bundle carries.
type Content struct {
	Profiles []Profile
	Packs    []Pack
}

// Write writes a bundle, signed with key. created is recorded in the manifest.
func Write(w io.Writer, c Content, key ed25519.PrivateKey, created time.Time) error {
	m := manifest{Format: format, Created: created.UTC().Truncate(time.Second), Profiles: make([]item, 0, len(c.Profiles))}
	for _, p := range c.Profiles {
		m.Profiles = append(m.Profiles, item{Name: winstruct.FileName(p.Entry.Identity), Build: p.Entry.Identity, Version: p.Entry.Version,
			Size: int64(len(p.Packed)), SHA256: digest(p.Packed)})
	}
	for _, p := range c.Packs {
		if err := winstruct.CheckPackName(p.Name); err != nil {
			return err
		}
		k, err := winstruct.OpenKernelPack(p.Data)
		if err != nil {
			return fmt.Errorf("pack %s: %w", p.Name, err)
		}
		m.Format = formatWithPacks
		m.Packs = append(m.Packs, packed{Name: p.Name, Kernels: k.Len(), Size: int64(len(p.Data)), SHA256: digest(p.Data)})
	}
	text, err := json.MarshalIndent(&m, "", " ")
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	add := func(name string, data []byte) error {
		err := t.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644, ModTime: m.Created})
		if err == nil {
			_, err = t.Write(data)
		}
		return err
	}
	err = errors.Join(add(manifestName, text), add(signatureName, ed25519.Sign(key, signed(text))))
	for _, p := range c.Profiles {
		err = errors.Join(err, add(winstruct.FileName(p.Entry.Identity), p.Packed))
	}
	for _, p := range c.Packs {
		err = errors.Join(err, add(p.Name, p.Data))
	}
	return errors.Join(err, t.Close())
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func signed(manifest []byte) []byte { return append([]byte(signedPrefix), manifest...) }

// Imported is what Import stored.
type Imported struct {
	Profiles []winstruct.Identity
	Packs    []string // names of files
	Kernels  int      // in the packs
}

// Import verifies a bundle and stores its profiles and packs in a directory: all of them,
// or none. usable reports whether a profile is of use; the bundle is refused if one is not,
// or if a pack has a kernel of which there is none. Profiles of the same builds and packs
// of the same name that are in the directory already are replaced.
func Import(r io.Reader, dir string, trusted []ed25519.PublicKey, usable func(*winstruct.Profile) error) (*Imported, error) {
	t := tar.NewReader(r)
	m, err := readManifest(t, trusted)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	stage, err := os.MkdirTemp(dir, ".bundle-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(stage)
	out := new(Imported)
	var names []string
	total := int64(0)
	for _, it := range m.Profiles {
		if total += it.Size; it.Size < 0 || it.Size > maxProfile || total > maxTotal {
			return nil, corrupt("%s of %d bytes", it.Name, it.Size)
		}
		if err := stageOne(t, stage, it, usable); err != nil {
			return nil, err
		}
		out.Profiles, names = append(out.Profiles, it.Build), append(names, it.Name)
	}
	for _, it := range m.Packs {
		if err := stagePack(t, stage, it, usable); err != nil {
			return nil, err
		}
		out.Packs, names = append(out.Packs, it.Name), append(names, it.Name)
		out.Kernels += it.Kernels
	}
	if _, err := t.Next(); !errors.Is(err, io.EOF) {
		return nil, corrupt("something behind the last file of the manifest")
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(stage, name), filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("store %s: %w", name, err)
		}
	}
	return out, nil
}

// readManifest reads what a bundle begins with, and verifies its signature.
func readManifest(t *tar.Reader, trusted []ed25519.PublicKey) (*manifest, error) {
	text, err := next(t, manifestName, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotBundle, err)
	}
	sig, err := next(t, signatureName, ed25519.SignatureSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotBundle, err)
	}
	ok := false
	for _, key := range trusted {
		ok = ok || ed25519.Verify(key, signed(text), sig)
	}
	if !ok {
		return nil, fmt.Errorf("%w (%d keys are)", ErrSignature, len(trusted))
	}
	m := new(manifest)
	if err := json.Unmarshal(text, m); err != nil {
		return nil, corrupt("manifest: %v", err)
	}
	if m.Format != format && m.Format != formatWithPacks {
		return nil, corrupt("format %d: this vmav reads formats %d and %d", m.Format, format, formatWithPacks)
	}
	if len(m.Profiles) > maxProfiles || len(m.Packs) > maxPacks {
		return nil, corrupt("%d profiles and %d packs", len(m.Profiles), len(m.Packs))
	}
	return m, nil
}

// stagePack verifies the next pack of the archive and writes it into a directory.
func stagePack(t *tar.Reader, dir string, it packed, usable func(*winstruct.Profile) error) error {
	if err := winstruct.CheckPackName(it.Name); err != nil {
		return corrupt("manifest: %v", err)
	}
	if it.Size < 0 || it.Size > pack.MaxSize {
		return corrupt("%s of %d bytes", it.Name, it.Size)
	}
	data, err := signedFile(t, it.Name, it.Size, it.SHA256)
	if err != nil {
		return err
	}
	k, err := winstruct.OpenKernelPack(data)
	if err == nil && k.Len() != it.Kernels {
		err = fmt.Errorf("it has %d kernels, the manifest says %d", k.Len(), it.Kernels)
	}
	if err == nil {
		err = k.Check(usable)
	}
	if err != nil {
		return fmt.Errorf("pack %s of the bundle: %w", it.Name, err)
	}
	return stageFile(dir, it.Name, data)
}

// stageOne verifies the next profile of the archive and writes it into a directory.
func stageOne(t *tar.Reader, dir string, it item, usable func(*winstruct.Profile) error) error {
	if err := it.Build.Check(); err != nil {
		return corrupt("manifest: %v", err)
	}
	if it.Name != winstruct.FileName(it.Build) {
		return corrupt("%q is not the file of %s", it.Name, it.Build)
	}
	data, err := signedFile(t, it.Name, it.Size, it.SHA256)
	if err != nil {
		return err
	}
	p, err := winstruct.Load(bytes.NewReader(data))
	if err == nil && p.Identity != it.Build {
		err = fmt.Errorf("it holds %s", p.Identity)
	}
	if err == nil {
		err = usable(p)
	}
	if err != nil {
		return fmt.Errorf("profile %s of the bundle: %w", it.Name, err)
	}
	return stageFile(dir, it.Name, data)
}

// signedFile reads the next file of the archive, which must be the one of the manifest.
func signedFile(t *tar.Reader, name string, size int64, sum string) ([]byte, error) {
	data, err := next(t, name, size)
	if err != nil {
		return nil, corrupt("%v", err)
	}
	if digest(data) != sum {
		return nil, corrupt("%s is not the file that was signed", name)
	}
	return data, nil
}

func stageFile(dir, name string, data []byte) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// next reads the next file of the archive, which must have a name.
func next(t *tar.Reader, name string, most int64) ([]byte, error) {
	h, err := t.Next()
	if err != nil {
		return nil, fmt.Errorf("%s is missing: %w", name, err)
	}
	if h.Name != name || h.Typeflag != tar.TypeReg {
		return nil, fmt.Errorf("%q where %s belongs", h.Name, name)
	}
	if h.Size > most {
		return nil, fmt.Errorf("%s has %d bytes, at most %d belong", name, h.Size, most)
	}
	return io.ReadAll(io.LimitReader(t, most))
}

// ReadPrivateKey reads an Ed25519 key of an operator, as `openssl genpkey -algorithm
// ed25519` writes it (PKCS #8 in PEM).
func ReadPrivateKey(path string) (ed25519.PrivateKey, error) {
	key, err := readPEM(path, "PRIVATE KEY", x509.ParsePKCS8PrivateKey)
	if err != nil {
		return nil, err
	}
	k, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T, not an Ed25519 key", path, key)
	}
	return k, nil
}

// ReadPublicKey reads the public part, as `openssl pkey -pubout` writes it.
func ReadPublicKey(path string) (ed25519.PublicKey, error) {
	key, err := readPEM(path, "PUBLIC KEY", x509.ParsePKIXPublicKey)
	if err != nil {
		return nil, err
	}
	k, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T, not an Ed25519 key", path, key)
	}
	return k, nil
}

func readPEM(path, kind string, parse func([]byte) (any, error)) (any, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s is no %s in PEM", path, kind)
	}
	key, err := parse(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	return key, nil
}

// TrustedDir is the directory with the public keys whose bundles this host accepts.
const TrustedDir = "/etc/vmav/trusted"

// TrustedKeys reads the keys of a directory, in files *.pub. If there is no directory there
// are none.
func TrustedKeys(dir string) ([]ed25519.PublicKey, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.pub"))
	if err != nil {
		return nil, err
	}
	var out []ed25519.PublicKey
	for _, f := range files {
		k, err := ReadPublicKey(f)
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	return out, nil
}

// Is reports whether a file starts like a bundle.
func Is(head []byte) bool { return bytes.HasPrefix(head, []byte(manifestName+"\x00")) }
