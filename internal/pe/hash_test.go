package pe_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"math/rand"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// pefileHashes has pefile (Debian package python3-pefile), which defined the import hash,
// compute it for files.
func pefileHashes(t *testing.T, paths []string) map[string]string {
	t.Helper()
	cmd := exec.Command("/usr/bin/python3", "-c", `
import sys, pefile
for line in sys.stdin:
    path = line.rstrip("\n")
    try:
        f = pefile.PE(path, fast_load=True)
        f.parse_data_directories([pefile.DIRECTORY_ENTRY["IMAGE_DIRECTORY_ENTRY_IMPORT"]])
        print(f.get_imphash(), path)
    except pefile.PEFormatError:
        pass
`)
	cmd.Stdin = strings.NewReader(strings.Join(paths, "\n") + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("pefile: %v (Debian package python3-pefile)", err)
	}
	hashes := make(map[string]string)
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		hash, path, _ := strings.Cut(s.Text(), " ")
		hashes[path] = hash
	}
	return hashes
}

// TestImportHash compares import hashes of originals and rebuilt files with pefile's.
func TestImportHash(t *testing.T) {
	l := &petest.Loader{Rand: rand.New(rand.NewSource(15)), ResolveDelay: true}
	original, rebuilt := map[string]string{}, map[string]string{}
	var paths []string
	sample(t, 6, l, func(path string, file []byte, m *petest.Mapped) {
		h, err := pe.ParseHeaders(file)
		if err != nil {
			t.Fatal(err)
		}
		f, err := pe.Rebuild(imageOf(path, m), pe.Options{PreferredBase: originalBase(file), ResolveExport: resolver(l)})
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
		original[path], rebuilt[path] = pe.ImportHash(file, h), pe.Hash(f).ImportHash
	})
	want := pefileHashes(t, paths)
	files := 0
	for _, path := range paths {
		if want[path] == "" {
			if original[path] != "" {
				t.Logf("%s: %s, pefile has none", path, original[path])
			}
			continue
		}
		files++
		if original[path] != want[path] || rebuilt[path] != want[path] {
			t.Errorf("%s: %s, rebuilt %s, want %s", path, original[path], rebuilt[path], want[path])
		}
	}
	t.Logf("%d files", files)
	if files < 100 {
		t.Errorf("only %d files with an import hash", files)
	}
}

// TestAuthenticode finds the digest that a file's signer signed in what he left in the
// file, for the original and for what was rebuilt of memory, where the signature is not.
func TestAuthenticode(t *testing.T) {
	l := &petest.Loader{Rand: rand.New(rand.NewSource(16)), ResolveDelay: true}
	signed := 0
	for _, path := range corpusFiles(t) {
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		h, err := pe.ParseHeaders(file)
		if err != nil || h.NumDirs < 5 || h.Dirs[4].Size == 0 || uint64(h.Dirs[4].RVA)+uint64(h.Dirs[4].Size) > uint64(len(file)) {
			continue
		}
		certificate := file[h.Dirs[4].RVA : h.Dirs[4].RVA+h.Dirs[4].Size]
		has := func(digest string) bool {
			b, err := hex.DecodeString(digest)
			return err == nil && len(b) == 32 && bytes.Contains(certificate, b)
		}
		if sha256 := []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}; !bytes.Contains(certificate, sha256) {
			continue // signed over a SHA-1
		}
		if digest := pe.Authenticode(file, h); !has(digest) {
			t.Errorf("%s: nobody signed %s", path, digest)
			continue
		}
		m, err := l.Map(file, l.Base(h.PE64))
		if err != nil {
			continue
		}
		f, err := pe.Rebuild(imageOf(path, m), pe.Options{PreferredBase: originalBase(file), ResolveExport: resolver(l)})
		if err != nil {
			t.Fatal(err)
		}
		if off, n := firstDifference(f.Data, file); n != 0 || uint32(len(f.Data)) != h.Dirs[4].RVA {
			t.Logf("%s: %d bytes differ, the first at %#x; %d bytes between sections and certificate", path, n, off, int(h.Dirs[4].RVA)-len(f.Data))
			continue
		}
		if signed++; !has(pe.Hash(f).Authenticode) {
			t.Errorf("%s, rebuilt: nobody signed %s", path, pe.Hash(f).Authenticode)
		}
	}
	t.Logf("%d signed files rebuilt with the digest that was signed", signed)
	if signed < 3 {
		t.Errorf("only %d signed files", signed)
	}
}

// TestOrdinalNames holds the names of ordinals against pefile's, all of them.
func TestOrdinalNames(t *testing.T) {
	out, err := exec.Command("/usr/bin/python3", "-c", `
from ordlookup import ords
for dll in ords:
    for number, name in ords[dll].items():
        print(dll.decode(), number, name.decode().lower())
`).Output()
	if err != nil {
		t.Fatalf("ordlookup: %v (Debian package python3-pefile)", err)
	}
	n := 0
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); n++ {
		f := strings.Fields(s.Text())
		ordinal, _ := strconv.Atoi(f[1])
		if got, want := pe.OrdinalName(f[0], uint16(ordinal)), f[2]; got != want {
			t.Errorf("%s, ordinal %d: %q, want %q", f[0], ordinal, got, want)
		}
	}
	if n < 500 {
		t.Errorf("%d names", n)
	}
}
