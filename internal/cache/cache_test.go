package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func key(n int) [32]byte { return sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(n))) }

// value is what belongs to a key, and to no other.
func value(n int) []byte {
	k := key(n)
	return append([]byte(fmt.Sprintf("value %d ", n)), bytes.Repeat(k[:], n%7)...)
}

type warnings struct {
	mu   sync.Mutex
	said []string
}

func (w *warnings) warn(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, s)
}

func open(t testing.TB, dir string, opt Options) *DB {
	t.Helper()
	d, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestWhatIsPutIsThereForOthersAndLater(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "vmav")
	a, b := open(t, dir, Options{}), open(t, dir, Options{})
	if a.Secret() != b.Secret() || a.Secret() == [32]byte{} {
		t.Errorf("secrets %x and %x", a.Secret(), b.Secret())
	}
	for n := range 1000 {
		a.Put(key(n), value(n))
	}
	a.Put(key(1001), nil)
	if got, ok := a.Get(key(3)); !ok || !bytes.Equal(got, value(3)) {
		t.Errorf("before it is written: %q, %v", got, ok)
	}
	a.Flush()
	secret := a.Secret()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	a.Put(key(2000), value(2000)) // in vain
	c := open(t, dir, Options{})
	if c.Secret() != secret {
		t.Error("another secret")
	}
	for _, d := range []*DB{b, c} {
		for n := range 1000 {
			if got, ok := d.Get(key(n)); !ok || !bytes.Equal(got, value(n)) {
				t.Fatalf("%d: %q, %v", n, got, ok)
			}
		}
		if got, ok := d.Get(key(1001)); !ok || len(got) != 0 {
			t.Errorf("an empty value: %q, %v", got, ok)
		}
		if got, ok := d.Get(key(2000)); ok {
			t.Errorf("what was not put: %q", got)
		}
	}
	st, err := os.Stat(filepath.Join(dir, fileName))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestAFileOfOthersIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileName), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, fileName), 0o666); err != nil {
		t.Fatal(err)
	}
	if d, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "this user's alone") {
		d.Close()
		t.Errorf("a file that anybody may write: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, fileName)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, fileName)); err != nil {
		t.Fatal(err)
	}
	if d, err := Open(dir, Options{}); err == nil {
		d.Close()
		t.Error("a link is followed")
	}
}

// TestItStaysWithinItsSize fills a cache with several times its size. What is used all the
// time survives.
func TestItStaysWithinItsSize(t *testing.T) {
	dir := t.TempDir()
	const size = 2 << 20
	d := open(t, dir, Options{MaxSize: size})
	now := time.Now()
	d.now = func() time.Time { return now }
	long := bytes.Repeat([]byte("x"), 1000)
	d.Put(key(-1), value(3))
	for n := range 8 * size / len(long) {
		d.Put(key(n), long)
		if n%200 == 0 {
			now = now.Add(usedUnit)
			if got, ok := d.Get(key(-1)); !ok || !bytes.Equal(got, value(3)) {
				t.Fatalf("after %d entries what is used is %q, %v", n, got, ok)
			}
			d.Flush()
		}
	}
	d.Flush()
	entries := 0
	if err := d.sql.QueryRow("SELECT count(*) FROM entry").Scan(&entries); err != nil || entries < size/len(long)/2 {
		t.Errorf("%d entries are left, %v", entries, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(dir, fileName))
	if err != nil || st.Size() > size {
		t.Errorf("%d bytes, %v; at most %d are to be", st.Size(), err, size)
	}
	if _, err := Open(dir, Options{MaxSize: 1000}); err == nil {
		t.Error("a cache of 1000 bytes")
	}
}

// TestADamagedFileIsMadeAnew damages a database in many ways. Whatever is read of it is
// what was put or nothing, and the next run has a cache that works.
func TestADamagedFileIsMadeAnew(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, Options{})
	const n = 400
	for i := range n {
		d.Put(key(i), value(i))
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	ways := map[string]func([]byte) []byte{
		"no database": func([]byte) []byte { return bytes.Repeat([]byte("no database "), 1000) },
		"cut off":     func(b []byte) []byte { return b[:len(b)/2] },
		"cut short":   func(b []byte) []byte { return b[:len(b)-4096] },
		"no pages":    func(b []byte) []byte { clear(b[8192:]); return b },
		"a version":   func(b []byte) []byte { b[63] = 9; return b }, // user_version (SQLite's file format, 1.3)
	}
	for i := range 60 {
		ways[fmt.Sprintf("bytes %d", i)] = func(b []byte) []byte {
			for range 1 + i*i/4 {
				b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
			}
			return b
		}
	}
	noticed := 0
	for name, damage := range ways {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName), damage(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		var w warnings
		d, err := Open(dir, Options{Warn: w.warn})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		found := 0
		for i := range n {
			got, ok := d.Get(key(i))
			if ok && !bytes.Equal(got, value(i)) {
				t.Errorf("%s: key %d has the value %q", name, i, got)
			}
			if ok {
				found++
			}
		}
		if found < n-2 && len(w.said) == 0 { // a damaged key is one that was not put
			t.Errorf("%s: %d of %d entries are there, and nobody was told", name, found, n)
		}
		if len(w.said) > 1 {
			t.Errorf("%s: told %d times: %q", name, len(w.said), w.said)
		}
		if len(w.said) > 0 {
			noticed++
		}
		d.Put(key(n), value(n)) // in vain, where it is given up
		if err := d.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
		d = open(t, dir, Options{Warn: w.warn})
		d.Put(key(n+1), value(n+1))
		d.Flush()
		if err := d.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
		d = open(t, dir, Options{})
		if got, ok := d.Get(key(n + 1)); !ok || !bytes.Equal(got, value(n+1)) {
			t.Errorf("%s: the run after it has %q, %v of what the next put", name, got, ok)
		}
		d.Close()
	}
	if noticed < 5 {
		t.Errorf("only %d of %d damages were noticed", noticed, len(ways))
	}
}

// TestOthersDoNotLoseWhatTheyHaveOpen damages a database that another process has open:
// it is made anew only when that one is gone.
func TestOthersDoNotLoseWhatTheyHaveOpen(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir, Options{}), open(t, dir, Options{})
	a.Put(key(1), value(1))
	a.Flush()
	if _, err := a.sql.Exec("UPDATE entry SET value = x'00112233445566778899aabbccddeeff00'"); err != nil {
		t.Fatal(err)
	}
	if got, ok := b.Get(key(1)); ok {
		t.Errorf("forged: %q", got)
	}
	if d, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "another process has it open") {
		d.Close()
		t.Errorf("a damaged database that is in use is opened: %v", err)
	}
	secret := a.Secret()
	a.Close()
	b.Close()
	c := open(t, dir, Options{})
	if c.Secret() == secret {
		t.Error("the secret of the damaged database is used again")
	}
}

// TestWritersThatAreKilled has processes write and read at once, and kills them wherever
// they are. What is read is always what belongs to the key.
func TestWritersThatAreKilled(t *testing.T) {
	if dir := os.Getenv("VMAV_CACHE_WRITER"); dir != "" {
		write(dir)
		return
	}
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(5, 6))
	run := func(seed int) *exec.Cmd {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWritersThatAreKilled$")
		cmd.Env = append(os.Environ(), "VMAV_CACHE_WRITER="+dir, "VMAV_CACHE_SEED="+strconv.Itoa(seed))
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	survivor := run(0) // it goes on while the others die
	for round := range 12 {
		a, b := run(2*round+1), run(2*round+2)
		time.Sleep(time.Duration(20+rng.IntN(150)) * time.Millisecond)
		_ = a.Process.Kill()
		_ = b.Process.Kill()
		_, _ = a.Process.Wait()
		_, _ = b.Process.Wait()
	}
	_ = survivor.Process.Kill()
	if st, _ := survivor.Process.Wait(); st.Exited() {
		t.Errorf("a process that nobody killed ended by itself: %v", st)
	}
	var w warnings
	d := open(t, dir, Options{Warn: w.warn})
	found := 0
	for n := range keySpace {
		got, ok := d.Get(key(n))
		if ok && !bytes.Equal(got, value(n)) {
			t.Errorf("key %d has the value %q", n, got)
		}
		if ok {
			found++
		}
	}
	if len(w.said) > 0 || found == 0 {
		t.Errorf("%d entries; %q", found, w.said)
	}
	if _, err := os.Stat(filepath.Join(dir, fileName+markSuffix)); err == nil {
		t.Error("a process that was killed left a damaged database")
	}
}

const keySpace = 20000

// write puts and gets until it is killed. It ends by itself only where it gets something
// wrong.
func write(dir string) {
	d, err := Open(dir, Options{MaxSize: MinMaxSize, Warn: func(s string) { fmt.Println(s); os.Exit(1) }})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	seed, _ := strconv.Atoi(os.Getenv("VMAV_CACHE_SEED"))
	rng := rand.New(rand.NewPCG(uint64(seed), 7))
	for i := 0; ; i++ {
		n := rng.IntN(keySpace)
		if got, ok := d.Get(key(n)); ok && !bytes.Equal(got, value(n)) {
			fmt.Printf("key %d has the value %q\n", n, got)
			os.Exit(1)
		}
		d.Put(key(n), value(n))
		if i%97 == 0 {
			d.Flush()
		}
	}
}

func TestTheProgramIsIdentified(t *testing.T) {
	id, err := Program()
	if err != nil || len(id) < 20 {
		t.Fatalf("%q, %v", id, err)
	}
	out, err := exec.Command("go", "tool", "buildid", os.Args[0]).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.TrimSpace(string(out)); id != want {
		t.Errorf("%q, go says %q", id, want)
	}
}

func BenchmarkGet(b *testing.B) {
	d := open(b, b.TempDir(), Options{})
	for n := range 10000 {
		d.Put(key(n), value(n))
	}
	d.Flush()
	b.ResetTimer()
	for i := range b.N {
		if _, ok := d.Get(key(i % 10000)); !ok {
			b.Fatal(i)
		}
	}
}
