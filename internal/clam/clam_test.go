package clam

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const marker = "VMAV-CLAM-TEST-MARKER"

func database(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.ndb")
	if err := os.WriteFile(path, []byte(fmt.Sprintf("Vmav.Test.Marker:0:*:%s\n", hex.EncodeToString([]byte(marker)))), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func engine(t testing.TB) *Engine {
	t.Helper()
	e, err := Open(context.Background(), Options{Databases: []string{database(t)}, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestPrivateEngineFindsWhatItsDatabaseNames(t *testing.T) {
	e := engine(t)
	info := e.Info()
	if !info.Private || !strings.HasPrefix(info.Version, "ClamAV 1.") {
		t.Errorf("info %+v", info)
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			data := []byte(fmt.Sprintf("file %d ", i) + strings.Repeat("x", 1000*i))
			want := ""
			if i%3 == 0 {
				data, want = append(data, marker...), "Vmav.Test.Marker"
			}
			res, err := e.Scan(context.Background(), "test", data)
			if err != nil || res.Signature != want || res.Skipped != "" {
				t.Errorf("file %d: %+v, %v; want %q", i, res, err, want)
			}
		}()
	}
	wg.Wait()
	dir := filepath.Dir(info.Socket)
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left behind: %v", dir, err)
	}
	if _, err := e.Scan(context.Background(), "test", nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Scan after Close = %v", err)
	}
}

func TestEngineThatDiesIsNamed(t *testing.T) {
	e := engine(t)
	if _, err := e.Scan(context.Background(), "warm-up", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := e.daemon.proc.Kill(); err != nil {
		t.Fatal(err)
	}
	<-e.daemon.exited
	for range 3 {
		if _, err := e.Scan(context.Background(), "program.exe", []byte("x")); !errors.Is(err, ErrEngineGone) || !strings.Contains(err.Error(), "program.exe") {
			t.Errorf("Scan = %v, want ErrEngineGone that names the file", err)
		}
	}
}

func TestInterruptedScanReturnsAtOnce(t *testing.T) {
	e := engine(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := e.Scan(ctx, "x", []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Scan = %v", err)
	}
	if res, err := e.Scan(context.Background(), "x", []byte(marker)); err != nil || res.Signature == "" {
		t.Errorf("a later scan = %+v, %v", res, err)
	}
}

func TestUnusableDatabaseIsNamed(t *testing.T) {
	for name, text := range map[string]string{"broken.ndb": "no signature\n", "empty": ""} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		tmp := t.TempDir()
		e, err := Open(context.Background(), Options{Databases: []string{path}, TempDir: tmp})
		if err == nil {
			e.Close()
			t.Errorf("%s: an engine starts", name)
			continue
		}
		if !errors.Is(err, ErrNoEngine) || !strings.Contains(err.Error(), "it ended at once: ") {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) != 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
	if _, err := Open(context.Background(), Options{Databases: []string{"/no/such/file.ndb"}, TempDir: t.TempDir()}); err == nil ||
		!strings.Contains(err.Error(), "/no/such/file.ndb") {
		t.Errorf("missing file: %v", err)
	}
}

func TestFileOverTheLimitIsNotClean(t *testing.T) {
	e := engine(t)
	e.maxFile = 10
	if res, err := e.Scan(context.Background(), "big", make([]byte, 11)); err != nil || res.Skipped == "" {
		t.Errorf("Scan = %+v, %v", res, err)
	}
}

// A daemon that does not keep to the protocol gives a named error, never a result.
func TestBrokenDaemons(t *testing.T) {
	for name, answer := range map[string]string{
		"garbage":      "garbage\x00",
		"wrong number": "77: fd[9]: OK\x00",
		"no verdict":   "1: nothing\x00",
		"cut off":      "1: fd[9]: O",
		"endless":      strings.Repeat("A", maxReply+1),
		"hang-up":      "",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					buf := make([]byte, 4096)
					for got := 0; got < len("zIDSESSION\x00zFILDES\x00\x00"); {
						n, err := c.Read(buf)
						if err != nil {
							break
						}
						got += n
					}
					c.Write([]byte(answer))
					c.Close()
				}
			}()
			e := &Engine{addr: path, maxFile: 1 << 20}
			defer e.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if res, err := e.Scan(ctx, "x", []byte("x")); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Scan = %+v, %v", res, err)
			}
		})
	}
}

func TestVersionLines(t *testing.T) {
	info, err := parseVersion("ClamAV 1.4.6/27400/Mon Nov  3 09:12:01 2025")
	if err != nil || info.Version != "ClamAV 1.4.6" || info.Database != "27400" || info.BuildTime.Format(time.DateOnly) != "2025-11-03" {
		t.Errorf("%+v, %v", info, err)
	}
	if info, err := parseVersion("ClamAV 1.4.6"); err != nil || info.Database != "" || !info.BuildTime.IsZero() {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := parseVersion("SSH-2.0"); err == nil {
		t.Error("a stranger passes for clamd")
	}
}

func TestLimitsOfTheHostsDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clamd.conf")
	for text, want := range map[string]uint64{"MaxFileSize 25M\nMaxScanSize 100M\n": 25 << 20, "MaxFileSize 0\n": defaultMaxFile,
		"#MaxFileSize 1K\n": defaultMaxFile, "MaxScanSize 4096K\n": 4 << 20} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := systemMaxFile(path); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func FuzzReplies(f *testing.F) {
	f.Add("1: fd[10]: OK")
	f.Add("3: fd[10]: Eicar-Test-Signature FOUND")
	f.Add("3: fd[10]: Heuristics.Limits.Exceeded.MaxFileSize FOUND")
	f.Add("9: fd[10]: Can't allocate memory ERROR")
	f.Fuzz(func(t *testing.T, line string) {
		_, reply, err := parseReply(line)
		if err != nil {
			return
		}
		res, err := parseResult(reply)
		if err != nil && res != (Result{}) {
			t.Fatalf("%q: a result with an error: %+v", line, res)
		}
		if err == nil && res == (Result{}) && !strings.HasSuffix(reply, ": OK") {
			t.Fatalf("%q passes for clean", line)
		}
		parseVersion(line)
	})
}

func BenchmarkScan(b *testing.B) {
	e := engine(b)
	data := make([]byte, 1<<20)
	b.SetBytes(int64(len(data)))
	for i := range b.N {
		data[i%len(data)]++ // new to the engine's own cache
		if _, err := e.Scan(context.Background(), "bench", data); err != nil {
			b.Fatal(err)
		}
	}
}
