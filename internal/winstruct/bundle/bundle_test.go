package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/winstruct"
)

func fine(*winstruct.Profile) error { return nil }

func some(t testing.TB, n int) (out []Profile) {
	t.Helper()
	store := winstruct.BuiltIn()
	for _, e := range store.List()[:n] {
		packed, err := store.Packed(e)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Profile{e, packed})
	}
	return out
}

func key(t testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return pub, priv
}

func write(t testing.TB, profiles []Profile, priv ed25519.PrivateKey) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, Content{Profiles: profiles}, priv, time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func stored(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestABundleCarriesProfiles(t *testing.T) {
	pub, priv := key(t)
	other, _ := key(t)
	profiles := some(t, 5)
	data := write(t, profiles, priv)
	if !Is(data[:512]) {
		t.Error("it is not recognised")
	}
	dir := filepath.Join(t.TempDir(), "profiles")
	got, err := Import(bytes.NewReader(data), dir, []ed25519.PublicKey{other, pub}, fine)
	if err != nil || len(got.Profiles) != 5 || got.Packs != nil {
		t.Fatalf("Import = %v, %v", got, err)
	}
	if names := stored(t, dir); len(names) != 5 {
		t.Errorf("stored %v", names)
	}
	for _, p := range profiles {
		f, err := os.ReadFile(filepath.Join(dir, winstruct.FileName(p.Entry.Identity)))
		if err != nil || !bytes.Equal(f, p.Packed) {
			t.Errorf("%s differs from what was exported, %v", p.Entry.Identity, err)
		}
	}
}

// packOf is a pack of some kernels, with one fact of each.
func packOf(t testing.TB, name string, n int) Pack {
	t.Helper()
	b := winstruct.NewPackBuilder([]string{"_EPROCESS.UniqueProcessId", "sym(PsActiveProcessHead)"})
	store := winstruct.BuiltIn()
	for _, e := range store.List()[:n] {
		p, err := store.Open(e)
		if err == nil {
			err = b.Add(p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return Pack{Name: name, Data: data}
}

func writeAll(t testing.TB, c Content, priv ed25519.PrivateKey) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, c, priv, time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestABundleCarriesPacks(t *testing.T) {
	pub, priv := key(t)
	c := Content{Profiles: some(t, 2), Packs: []Pack{packOf(t, "kernels.pack", 9), packOf(t, "more.pack", 3)}}
	data := writeAll(t, c, priv)
	dir := t.TempDir()
	checked := 0
	got, err := Import(bytes.NewReader(data), dir, []ed25519.PublicKey{pub}, func(*winstruct.Profile) error { checked++; return nil })
	if err != nil || len(got.Profiles) != 2 || len(got.Packs) != 2 || got.Kernels != 12 {
		t.Fatalf("Import = %+v, %v", got, err)
	}
	if checked < 4 {
		t.Errorf("%d profiles checked for use", checked)
	}
	for _, p := range c.Packs {
		if f, err := os.ReadFile(filepath.Join(dir, p.Name)); err != nil || !bytes.Equal(f, p.Data) {
			t.Errorf("%s differs from what was exported, %v", p.Name, err)
		}
	}
}

func TestAForgedPackIsRefused(t *testing.T) {
	pub, priv := key(t)
	trusted := []ed25519.PublicKey{pub}
	c := Content{Profiles: some(t, 2), Packs: []Pack{packOf(t, "kernels.pack", 9)}}
	data := writeAll(t, c, priv)
	// signedAs has a manifest that says something else of the pack, rightly signed.
	signedAs := func(old, new string, name string) []byte {
		return rewrite(t, data, func(n string, content []byte) (string, []byte) {
			switch n {
			case manifestName:
				return n, bytes.Replace(content, []byte(old), []byte(new), 1)
			case signatureName:
				text, err := next(tar.NewReader(bytes.NewReader(data)), manifestName, maxManifest)
				if err != nil {
					t.Fatal(err)
				}
				return n, ed25519.Sign(priv, signed(bytes.Replace(text, []byte(old), []byte(new), 1)))
			case "kernels.pack":
				return name, content
			}
			return n, content
		})
	}
	_, foreign := key(t)
	for _, tt := range []struct {
		name string
		data []byte
		want error
		text string
	}{
		{"another key", writeAll(t, c, foreign), ErrSignature, ""},
		{"a changed byte", rewrite(t, data, func(n string, content []byte) (string, []byte) {
			if n == "kernels.pack" {
				content[len(content)-1] ^= 1
			}
			return n, content
		}), ErrCorrupt, "not the file that was signed"},
		{"no pack", rewrite(t, data, func(n string, content []byte) (string, []byte) {
			if n == "kernels.pack" {
				return "", nil
			}
			return n, content
		}), ErrCorrupt, "missing"},
		{"signed with a path", signedAs("kernels.pack", "../x.pack", "../x.pack"), ErrCorrupt, "no name of a pack"},
		{"signed with another count", signedAs(`"kernels": 9`, `"kernels": 8`, "kernels.pack"), nil, "9 kernels, the manifest says 8"},
		{"signed with a size below none", signedAs(`"kernels": 9,
   "size": `, `"kernels": 9,
   "size": -`, "kernels.pack"), ErrCorrupt, "of -"},
		{"signed as of another format", signedAs(`"vmav_bundle": 2`, `"vmav_bundle": 3`, "kernels.pack"), ErrCorrupt, "format 3"},
	} {
		dir := t.TempDir()
		got, err := Import(bytes.NewReader(tt.data), dir, trusted, fine)
		if got != nil || err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: Import = %v, %v; want %v with %q", tt.name, got, err, tt.want, tt.text)
		}
		if names := stored(t, dir); len(names) != 0 {
			t.Errorf("%s: stored %v", tt.name, names)
		}
	}
	useless := errors.New("of no use")
	dir := t.TempDir()
	if _, err := Import(bytes.NewReader(data), dir, trusted, func(p *winstruct.Profile) error {
		if p.Partial() {
			return useless
		}
		return nil
	}); !errors.Is(err, useless) || len(stored(t, dir)) != 0 {
		t.Errorf("a pack of no use: %v", err)
	}
	var b bytes.Buffer
	for _, p := range []Pack{{"kernels.pack", []byte("nothing")}, {"kernels", c.Packs[0].Data}} {
		if err := Write(&b, Content{Packs: []Pack{p}}, priv, time.Now()); err == nil || b.Len() > 0 {
			t.Errorf("a pack %s that is none was written, %v", p.Name, err)
		}
	}
}

// rewrite changes an archive's files.
func rewrite(t *testing.T, data []byte, change func(name string, content []byte) (string, []byte)) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name, content := change(h.Name, content)
		if name == "" {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		w.Write(content)
	}
	w.Close()
	return out.Bytes()
}

func TestAForgedBundleIsRefused(t *testing.T) {
	pub, priv := key(t)
	trusted := []ed25519.PublicKey{pub}
	_, foreign := key(t)
	profiles := some(t, 3)
	data := write(t, profiles, priv)
	last := winstruct.FileName(profiles[2].Entry.Identity)
	swapped := some(t, 2)
	swapped[0].Packed, swapped[1].Packed = swapped[1].Packed, swapped[0].Packed
	for _, tt := range []struct {
		name string
		data []byte
		want error
		text string
	}{
		{"another key", write(t, profiles, foreign), ErrSignature, "1 keys"},
		{"a changed manifest", rewrite(t, data, func(n string, c []byte) (string, []byte) {
			if n == manifestName {
				c = bytes.Replace(c, []byte(`"age": 1`), []byte(`"age": 2`), 1)
			}
			return n, c
		}), ErrSignature, ""},
		{"a changed profile", rewrite(t, data, func(n string, c []byte) (string, []byte) {
			if n == last {
				c[len(c)/2] ^= 1
			}
			return n, c
		}), ErrCorrupt, "not the file that was signed"},
		{"a profile of another name", rewrite(t, data, func(n string, c []byte) (string, []byte) {
			if n == last {
				n = "../../etc/cron.d/x"
			}
			return n, c
		}), ErrCorrupt, "cron.d"},
		{"a profile missing", rewrite(t, data, func(n string, c []byte) (string, []byte) {
			if n == last {
				n = ""
			}
			return n, c
		}), ErrCorrupt, "missing"},
		{"a file more", func() []byte {
			var out bytes.Buffer
			w := tar.NewWriter(&out)
			r := tar.NewReader(bytes.NewReader(data))
			for {
				h, err := r.Next()
				if err != nil {
					break
				}
				w.WriteHeader(h)
				io.Copy(w, r)
			}
			w.WriteHeader(&tar.Header{Name: "more", Size: 1})
			w.Write([]byte{0})
			w.Close()
			return out.Bytes()
		}(), ErrCorrupt, "behind the last"},
		{"cut off", data[:len(data)/2], ErrCorrupt, ""},
		{"no signature", rewrite(t, data, func(n string, c []byte) (string, []byte) {
			if n == signatureName {
				n = ""
			}
			return n, c
		}), ErrNotBundle, signatureName},
		{"nothing", nil, ErrNotBundle, manifestName},
		{"signed, with builds mixed up", write(t, swapped, priv), nil, "it holds"},
	} {
		dir := t.TempDir()
		got, err := Import(bytes.NewReader(tt.data), dir, trusted, fine)
		if got != nil || err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: Import = %v, %v; want %v with %q", tt.name, got, err, tt.want, tt.text)
		}
		if names := stored(t, dir); len(names) != 0 {
			t.Errorf("%s: stored %v", tt.name, names)
		}
	}
	if _, err := Import(bytes.NewReader(data), t.TempDir(), nil, fine); !errors.Is(err, ErrSignature) {
		t.Errorf("without a trusted key: %v", err)
	}
	useless := errors.New("of no use")
	dir := t.TempDir()
	if _, err := Import(bytes.NewReader(data), dir, trusted, func(*winstruct.Profile) error { return useless }); !errors.Is(err, useless) ||
		len(stored(t, dir)) != 0 {
		t.Errorf("a profile of no use: %v", err)
	}
}

// Keys are those of openssl, as docs/PROFILES.md has the operator make them.
func TestKeysOfOpenssl(t *testing.T) {
	dir := t.TempDir()
	private, public := filepath.Join(dir, "fleet.key"), filepath.Join(dir, "fleet.pub")
	run := func(args ...string) {
		if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	run("genpkey", "-algorithm", "ed25519", "-out", private)
	run("pkey", "-in", private, "-pubout", "-out", public)
	priv, err := ReadPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := TrustedKeys(dir)
	if err != nil || len(keys) != 1 || !keys[0].Equal(priv.Public()) {
		t.Errorf("TrustedKeys = %v, %v", keys, err)
	}
	if _, err := ReadPrivateKey(public); err == nil || !strings.Contains(err.Error(), "PRIVATE KEY") {
		t.Errorf("a public key in the place of a private one: %v", err)
	}
	rsa := filepath.Join(dir, "rsa.key")
	run("genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048", "-out", rsa)
	if _, err := ReadPrivateKey(rsa); err == nil || !strings.Contains(err.Error(), "Ed25519") {
		t.Errorf("an RSA key: %v", err)
	}
	broken := filepath.Join(dir, "broken.pub")
	der, err := x509.MarshalPKIXPublicKey(priv.Public())
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(broken, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der[:10]}), 0o644)
	if _, err := TrustedKeys(dir); err == nil || !strings.Contains(err.Error(), "broken.pub") {
		t.Errorf("a broken key: %v", err)
	}
}

func FuzzImport(f *testing.F) {
	pub, priv := key(f)
	f.Add(write(f, some(f, 1), priv))
	f.Add(writeAll(f, Content{Packs: []Pack{packOf(f, "kernels.pack", 1)}}, priv))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		got, err := Import(bytes.NewReader(data), dir, []ed25519.PublicKey{pub}, fine)
		if err != nil && (got != nil || len(stored(t, dir)) != 0) {
			t.Fatalf("%v with %v", err, got)
		}
	})
}
