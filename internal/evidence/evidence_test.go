package evidence

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vmav.dev/vmav/internal/clam"
)

func store(t testing.TB, l Limits) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "evidence"), l)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, s *Store, h Header, content []byte) string {
	t.Helper()
	sum, err := s.Put(h, content)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// noise does not compress.
func noise(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestWhatIsPutIsExtracted(t *testing.T) {
	s := store(t, Limits{})
	for name, content := range map[string][]byte{"nothing": nil, "a byte": {7}, "zeros": make([]byte, 5<<20), "noise": noise(1, 3<<20+17)} {
		h := Header{Kind: "scanned", Domain: "win10", Image: `C:\x.exe`, Signature: "Sig"}
		sum := put(t, s, h, content)
		if want := fmt.Sprintf("%x", sha256.Sum256(content)); sum != want {
			t.Errorf("%s: stored as %s, want %s", name, sum, want)
		}
		var b bytes.Buffer
		got, err := s.Extract(sum, &b)
		if err != nil || !bytes.Equal(b.Bytes(), content) {
			t.Errorf("%s: %d bytes, %v; want %d", name, b.Len(), err, len(content))
		}
		h.SHA256, h.Size, h.Stored = sum, uint64(len(content)), got.Stored
		if got != h || time.Since(got.Stored) > time.Hour {
			t.Errorf("%s: %+v, want %+v", name, got, h)
		}
		if found, err := s.Find(sum[:10]); err != nil || found != sum {
			t.Errorf("%s: %s, %v", name, found, err)
		}
	}
	all, err := s.List()
	if err != nil || len(all) != 4 {
		t.Errorf("%d items, %v", len(all), err)
	}
	for _, it := range all {
		st, err := os.Stat(it.Path)
		if err != nil || st.Mode().Perm() != 0o400 || st.Size() != it.Sealed {
			t.Errorf("%s: %v, %v; want mode 0400", it.Path, st.Mode(), err)
		}
		if st, err = os.Stat(filepath.Dir(it.Path)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want mode 0700", filepath.Dir(it.Path), st.Mode(), err)
		}
	}
}

// Equal contents are stored once, also by several at once, and under the name of the
// first; the time is that of the last.
func TestEqualContentsAreStoredOnce(t *testing.T) {
	s := store(t, Limits{})
	content := noise(2, 1<<20)
	sum := put(t, s, Header{Domain: "first"}, content)
	old := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(s.path(sum), old, old); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if got, err := s.Put(Header{Domain: "later"}, content); err != nil || got != sum {
				t.Errorf("%s, %v; want %s", got, err, sum)
			}
			if _, err := s.Put(Header{}, noise(uint64(10+i%2), 1000)); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	all, err := s.List()
	if err != nil || len(all) != 3 {
		t.Fatalf("%d items, %v; want 3", len(all), err)
	}
	for _, it := range all {
		if it.SHA256 == sum && (it.Domain != "first" || it.Last.Before(old.Add(time.Hour))) {
			t.Errorf("%+v", it)
		}
	}
}

func TestAFullStoreRefuses(t *testing.T) {
	s := store(t, Limits{Size: 50000, Age: time.Hour})
	first := put(t, s, Header{}, noise(1, 20000))
	second := put(t, s, Header{}, noise(2, 20000))
	if _, err := s.Put(Header{}, noise(3, 20000)); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "50000") {
		t.Errorf("a third: %v", err)
	}
	if _, err := s.Put(Header{}, noise(4, 60000)); !errors.Is(err, ErrFull) {
		t.Errorf("one that never fits: %v", err)
	}
	put(t, s, Header{}, noise(1, 20000))     // is there already
	put(t, s, Header{}, make([]byte, 1<<20)) // small when sealed
	// What is old makes room; what is young does not.
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(s.path(first), old, old); err != nil {
		t.Fatal(err)
	}
	third := put(t, s, Header{}, noise(3, 20000))
	for sum, want := range map[string]bool{first: false, second: true, third: true} {
		if _, err := s.Show(sum); (err == nil) != want || err != nil && !errors.Is(err, ErrNoItem) {
			t.Errorf("%s: %v", sum, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "new-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestPrune(t *testing.T) {
	s := store(t, Limits{})
	var sums []string
	for i := range 6 {
		sum := put(t, s, Header{}, noise(uint64(i), 10000))
		at := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(s.path(sum), at, at); err != nil {
			t.Fatal(err)
		}
		sums = append(sums, sum)
	}
	for name, age := range map[string]time.Duration{"dead": 2 * staleAfter, "at-work": 0} {
		path, at := filepath.Join(s.dir, ".sum"+suffix+name), time.Now().Add(-age)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := s.Prune(); err != nil || p.Items != 0 || p.Left != 6 {
		t.Errorf("without limits: %+v, %v", p, err)
	}
	// The first two are older than 8.5 hours, then only two fit.
	limited, err := Open(s.dir, Limits{Age: 8*time.Hour + 30*time.Minute, Size: 25000})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := limited.Prune(); err != nil || p.Items != 4 || p.Left != 2 || p.Used > 25000 || p.Bytes < 40000 {
		t.Errorf("%+v, %v", p, err)
	}
	for i, sum := range sums {
		if _, err := s.Show(sum); (err == nil) != (i >= 4) {
			t.Errorf("item %d: %v", i, err)
		}
	}
	files, err := os.ReadDir(s.dir)
	if err != nil || len(files) > 4 { // two directories, the lock, what is at work
		t.Errorf("%v, %v", files, err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, ".sum"+suffix+"at-work")); err != nil {
		t.Error(err)
	}
}

// An item that was damaged is an error with the file's name, and is made anew when its
// content is stored again where its beginning is damaged.
func TestDamagedItemsAreRefused(t *testing.T) {
	s := store(t, Limits{})
	content := noise(1, 5000)
	sum := put(t, s, Header{Kind: "scanned"}, content)
	whole, err := os.ReadFile(s.path(sum))
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		t.Helper()
		if err := os.Remove(s.path(sum)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path(sum), b, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []int{0, 9, 13, 20, 30, 60, 2000, len(whole) - 1} {
		b := bytes.Clone(whole)
		b[at] ^= 1
		write(b)
		if _, err := s.Extract(sum, &bytes.Buffer{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), s.path(sum)) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
	for _, n := range []int{0, 7, 55, 100, len(whole) - 1} {
		write(whole[:n])
		if _, err := s.Extract(sum, &bytes.Buffer{}); !errors.Is(err, ErrFormat) {
			t.Errorf("cut off at %d: %v", n, err)
		}
	}
	if _, err := s.List(); !errors.Is(err, ErrFormat) {
		t.Errorf("a list: %v", err)
	}
	put(t, s, Header{Kind: "scanned"}, content)
	if _, err := s.Extract(sum, &bytes.Buffer{}); err != nil {
		t.Errorf("stored again: %v", err)
	}
	// Another whole item under this name.
	other := put(t, s, Header{}, noise(2, 100))
	b, err := os.ReadFile(s.path(other))
	if err != nil {
		t.Fatal(err)
	}
	write(b)
	if _, err := s.Extract(sum, &bytes.Buffer{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), other) {
		t.Errorf("another item in its place: %v", err)
	}
}

func TestNames(t *testing.T) {
	s := store(t, Limits{})
	for _, name := range []string{"", "abc", "../../etc/passwd", strings.Repeat("g", 64), "ABCD/"} {
		if _, err := s.Find(name); err == nil || errors.Is(err, ErrNoItem) {
			t.Errorf("find %q: %v", name, err)
		}
		if _, err := s.Extract(name, &bytes.Buffer{}); err == nil || errors.Is(err, ErrNoItem) {
			t.Errorf("extract %q: %v", name, err)
		}
	}
	if _, err := s.Find("abcd"); !errors.Is(err, ErrNoItem) {
		t.Errorf("find abcd: %v", err)
	}
	if _, err := s.Show(strings.Repeat("0", 64)); !errors.Is(err, ErrNoItem) {
		t.Errorf("show: %v", err)
	}
	if _, err := OpenExisting(filepath.Join(s.dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no store: %v", err)
	}
}

// A scanner of the host finds nothing in a sealed item, and what is extracted is what it
// was: by clamd, which knows the content.
func TestScannersSeeNothingInSealedItems(t *testing.T) {
	const marker = "VMAV-EVIDENCE-TEST-MARKER"
	db := filepath.Join(t.TempDir(), "test.ndb")
	if err := os.WriteFile(db, []byte("Vmav.Test.Evidence:0:*:"+hex.EncodeToString([]byte(marker))+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	e, err := clam.Open(context.Background(), clam.Options{Databases: []string{db}, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	scan := func(data []byte) string {
		t.Helper()
		res, err := e.Scan(context.Background(), "test", data)
		if err != nil || res.Skipped != "" {
			t.Fatalf("%+v, %v", res, err)
		}
		return res.Signature
	}
	s := store(t, Limits{})
	for name, content := range map[string][]byte{"text": []byte(strings.Repeat(marker, 50)), "among noise": append(noise(1, 100000), marker...)} {
		if got := scan(content); got != "Vmav.Test.Evidence" {
			t.Fatalf("%s: the content itself: %q", name, got)
		}
		sum := put(t, s, Header{Kind: "scanned"}, content)
		sealed, err := os.ReadFile(s.path(sum))
		if err != nil {
			t.Fatal(err)
		}
		if got := scan(sealed); got != "" {
			t.Errorf("%s: sealed: %q", name, got)
		}
		var b bytes.Buffer
		if _, err := s.Extract(sum, &b); err != nil {
			t.Fatal(err)
		}
		if got := scan(b.Bytes()); got != "Vmav.Test.Evidence" {
			t.Errorf("%s: extracted: %q", name, got)
		}
	}
}
