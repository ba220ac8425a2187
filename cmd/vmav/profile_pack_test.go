package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// operatorKeys writes a pair of keys.
func operatorKeys(t *testing.T) (private, public string) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return writeFile(t, filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	private = write("bundle.key", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(pub)
	return private, write("bundle.pub", "PUBLIC KEY", der, err)
}

func writeFile(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// saying runs vmav and returns what it says on both outputs.
func saying(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if got := run(context.Background(), append([]string{"vmav"}, args...), &out, &out); got != want {
		t.Fatalf("vmav %v: status %d, want %d\n%s", args, got, want, out.String())
	}
	return out.String()
}

func profileFile(t *testing.T, path string, p *winstruct.Profile) string {
	t.Helper()
	var b bytes.Buffer
	if err := p.Save(&b); err != nil {
		t.Fatal(err)
	}
	return writeFile(t, path, b.Bytes())
}

// like is a profile as if of another kernel.
func like(t *testing.T, version, guid string) *winstruct.Profile {
	t.Helper()
	store := winstruct.BuiltIn()
	for _, e := range store.List() {
		if e.Version == version {
			p, err := store.Open(e)
			if err != nil {
				t.Fatal(err)
			}
			return p.ForImage(winstruct.Identity{PDB: "ntkrnlmp.pdb", GUID: guid, Age: 1}, symbolsOf(p))
		}
	}
	t.Fatalf("no profile of %s", version)
	return nil
}

func symbolsOf(p *winstruct.Profile) map[string]uint64 {
	out := make(map[string]uint64)
	for _, name := range p.Symbols() {
		out[name], _ = p.Symbol(name)
	}
	return out
}

// A pack is made of a directory, of profiles and of what is fetched; carried to a host
// that has the key; and read there as the kernels' own profiles are.
func TestAPackIsMadeCarriedAndRead(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("VMAV_AIR_GAPPED", "1") // what is fetched comes from a directory
	private, public := operatorKeys(t)
	builds, err := ntguest.Builds32()
	if err != nil {
		t.Fatal(err)
	}
	image, m := laidOut(t, ntguest.Options{Build: builds[0].Name, Seed: 9, MemoryMiB: 256, Hide: "malware.exe"})
	listed(t, image, m, true)

	from := t.TempDir()
	profileFile(t, filepath.Join(from, "guest.json.zst"), m.Profile())
	const inTree, fetched, absent = "11111111111111111111111111111111", "22222222222222222222222222222222", "33333333333333333333333333333333"
	writeFile(t, filepath.Join(from, "ntkrnlmp.pdb", inTree+"1", "ntkrnlmp.pdb"), winstructtest.PDB(like(t, "10.0.19041.1237", inTree)))
	writeFile(t, filepath.Join(from, "ntdll.pdb", "1", "ntdll.pdb"), []byte("Microsoft C/C++ MSF 7.00\r\n of no interest"))
	writeFile(t, filepath.Join(from, "README"), []byte("of no interest"))
	symbols := t.TempDir()
	writeFile(t, filepath.Join(symbols, "ntkrnlmp.pdb", fetched+"1", "ntkrnlmp.pdb"), winstructtest.PDB(like(t, "10.0.22000.978", fetched)))
	list := writeFile(t, filepath.Join(t.TempDir(), "builds"), []byte("# the fleet's\n\nntkrnlmp.pdb "+inTree+"1 10.0.19041.7777 # here\nntkrnlmp.pdb "+
		fetched+"1 10.0.22000.8888\n"))

	signed := filepath.Join(t.TempDir(), "kernels.bundle")
	pack := []string{"profile", "pack", "-o", signed, "--key", private, "--builds", list, "--symbol-path", symbols}
	out := saying(t, 0, append(pack, from)...)
	for _, want := range []string{signed + ": 3 kernels, 3 layouts", "1 symbol files ignored"} {
		if !strings.Contains(out, want) {
			t.Errorf("pack says\n%s, and not %q", out, want)
		}
	}

	// Not without the key, and not with one byte changed.
	if out := saying(t, 2, "profile", "import", signed); !strings.Contains(out, "not signed by a key that is trusted") {
		t.Errorf("without a trusted key: %s", out)
	}
	data, err := os.ReadFile(signed)
	if err != nil {
		t.Fatal(err)
	}
	data[bytes.Index(data, []byte("vmavpack"))+1000] ^= 1
	forged := writeFile(t, filepath.Join(t.TempDir(), "forged.bundle"), data)
	if out := saying(t, 2, "profile", "import", "--trust", public, forged); !strings.Contains(out, "kernels.pack is not the file that was signed") {
		t.Errorf("a changed byte: %s", out)
	}
	listed(t, image, m, true)

	out = saying(t, 0, "profile", "import", "--trust", public, signed)
	if !strings.Contains(out, "signature verified, kernels.pack with 3 kernels stored in") {
		t.Errorf("import says %s", out)
	}
	listed(t, image, m, false)
	database := writeFile(t, filepath.Join(t.TempDir(), "test.ndb"), fmt.Appendf(nil, "Vmav.Test.Malware:1:*:%x\n", "VMAV-TEST-MALWARE"))
	scanned(t, image, m, database)

	var rows []profileRow
	if err := json.Unmarshal([]byte(runVmav(t, 0, "profile", "list", "--format", "json")), &rows); err != nil {
		t.Fatal(err)
	}
	var known []string
	for _, r := range rows {
		if r.Layer == winstruct.PackLayer {
			known = append(known, r.Version+" "+r.ID[:8])
		}
	}
	slices.Sort(known)
	if want := []string{"10.0.19041.7777 11111111", "10.0.22000.8888 22222222"}; len(known) != 3 || !slices.Equal(known[:2], want) {
		t.Errorf("listed from the pack: %v, want %v and the guest's", known, want)
	}
	installed := filepath.Join(os.Getenv("XDG_DATA_HOME"), "vmav", "profiles", "kernels.pack")
	if out := runVmav(t, 0, "profile", "show", fetched+"1"); !strings.Contains(out, "found: pack, "+installed) {
		t.Errorf("show says %s", out)
	}
	if out := runVmav(t, 0, "profile", "show", installed); !strings.HasPrefix(out, "3 kernels, 3 layouts") || !strings.Contains(out, fetched+"1") {
		t.Errorf("show of the pack says %s", out)
	}
	if out := runVmav(t, 0, "profile", "verify"); !strings.Contains(out, "pack "+installed+": ok, 3 kernels") {
		t.Errorf("verify says %s", out)
	}

	// A pack that is taken out of its bundle has no signature.
	if out := saying(t, 2, "profile", "import", installed); !strings.Contains(out, "without its signature") {
		t.Errorf("an unsigned pack: %s", out)
	}
	// All that the host knows goes into the next one, what it has from packs too.
	next := filepath.Join(t.TempDir(), "next.bundle")
	if out := saying(t, 0, "profile", "pack", "--all", "-o", next, "--key", private); !strings.Contains(out, ": 38 kernels") {
		t.Errorf("pack --all says %s", out)
	}
	whole := filepath.Join(t.TempDir(), "whole.bundle")
	if out := runVmav(t, 0, "profile", "export", "--all", "-o", whole, "--key", private); !strings.Contains(out, "35 profiles and 1 packs") {
		t.Errorf("export --all says %s", out)
	}
	if out := saying(t, 0, "profile", "import", "--trust", public, whole); !strings.Contains(out, "35 profiles and kernels.pack with 3 kernels") {
		t.Errorf("import of both says %s", out)
	}

	// What cannot be had is named, and the status says that something is missing.
	broken := writeFile(t, filepath.Join(t.TempDir(), "ntkrnlmp.pdb"), []byte("Microsoft C/C++ MSF 7.00 and no more"))
	writeFile(t, list, []byte("ntkrnlmp.pdb "+absent+"1\n"))
	out = saying(t, 2, append(pack, from, broken)...)
	for _, want := range []string{broken + ": not packed", absent + "1: not packed", ": 2 kernels"} {
		if !strings.Contains(out, want) {
			t.Errorf("pack says\n%s, and not %q", out, want)
		}
	}
	for text, want := range map[string]string{"ntkrnlmp.pdb\n": ":1: 1 words", "\nntkrnlmp.pdb 12\n": ":2: \"12\" is no id",
		"ntkrnlmp.pdb " + absent + "1 new\n": ":1: version \"new\""} {
		writeFile(t, list, []byte(text))
		if out := saying(t, 2, append(pack, from)...); !strings.Contains(out, list+want) {
			t.Errorf("a list %q: %s", text, out)
		}
	}
	for want, args := range map[string][]string{
		"pack needs symbol files":    {"-o", next, "--key", private},
		"no name of a pack":          {"-o", next, "--key", private, "--pack-name", "../x", from},
		"no kernel to pack":          {"-o", next, "--key", private, t.TempDir()},
		"no such file":               {"-o", next, "--key", private, filepath.Join(from, "nothing")},
		"is no PRIVATE KEY":          {"-o", next, "--key", public, from},
		"Required flag \"output\"":   {"--key", private, from},
		"write pack " + "/dev/full/": {"-o", "/dev/full/x", "--key", private, from},
	} {
		if out := saying(t, 2, append([]string{"profile", "pack"}, args...)...); !strings.Contains(out, want) {
			t.Errorf("pack %v says %s, want %q", args, out, want)
		}
	}
}

// A damaged pack is named where profiles are listed and looked for, and hides nothing.
func TestADamagedPackIsNamed(t *testing.T) {
	data := t.TempDir()
	t.Setenv("XDG_DATA_HOME", data)
	path := writeFile(t, filepath.Join(data, "vmav", "profiles", "kernels.pack"), []byte("vmavpack and no more"))
	for _, args := range [][]string{{"profile", "list"}, {"profile", "verify"}, {"profile", "show", path}, {"profile", "verify", path}} {
		if out := saying(t, 2, args...); !strings.Contains(out, path) || !strings.Contains(out, "corrupt pack") {
			t.Errorf("vmav %v says %s", args, out)
		}
	}
	image, m := laidOut(t, ntguest.Options{Build: "10.0.19041", Seed: 9, MemoryMiB: 256, Hide: "malware.exe"})
	listed(t, image, m, false)
}
