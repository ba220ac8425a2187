package symsrv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/cab/cabtest"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// build is a kernel whose PDB the servers of these tests have.
var build = sync.OnceValues(func() (*winstruct.Profile, []byte) {
	store := winstruct.BuiltIn()
	p, err := store.Open(store.List()[20])
	if err != nil {
		panic(err)
	}
	return p, winstructtest.PDB(p)
})

// server is a real HTTP server on loopback that answers as handle says; it counts.
type server struct {
	*httptest.Server
	requests atomic.Int32
	mu       sync.Mutex
	seen     []string // "PATH RANGE"
}

func serve(t *testing.T, handle http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		s.mu.Lock()
		s.seen = append(s.seen, strings.TrimSpace(r.URL.Path+" "+r.Header.Get("Range")))
		s.mu.Unlock()
		handle(w, r)
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

// files serves content by the last part of the path, ranges and all.
func files(content map[string][]byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		data, ok := content[name]
		p, _ := build()
		if !ok || r.URL.Path != "/"+p.PDB+"/"+p.Key()+"/"+name {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(data))
	}
}

func client(t *testing.T, path string, more func(*Options)) *Client {
	t.Helper()
	opt := Options{Path: path, CacheDir: t.TempDir(), Stall: 5 * time.Second, wait: func(context.Context, time.Duration) error { return nil }}
	if more != nil {
		more(&opt)
	}
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fetch gets the build's profile and holds it against the one the PDB was made of.
func fetch(t *testing.T, c *Client) {
	t.Helper()
	want, _ := build()
	got, err := c.Profile(context.Background(), want.Identity)
	if err != nil {
		t.Fatal(err)
	}
	if got.Identity != want.Identity {
		t.Errorf("got %v, want %v", got.Identity, want.Identity)
	}
	for _, path := range []string{"UniqueProcessId", "Pcb.DirectoryTableBase", "ActiveProcessLinks"} {
		a, aerr := want.Field("_EPROCESS", path)
		b, berr := got.Field("_EPROCESS", path)
		if aerr != nil || berr != nil || a.Offset != b.Offset {
			t.Errorf("_EPROCESS.%s at %#x, %v; want %#x, %v", path, b.Offset, berr, a.Offset, aerr)
		}
	}
}

func mustFail(t *testing.T, c *Client, want error, text string) {
	t.Helper()
	p, _ := build()
	got, err := c.Profile(context.Background(), p.Identity)
	if got != nil || err == nil || want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("Profile = %v, %v; want an error of %v with %q", got != nil, err, want, text)
	}
}

// left lists the files that a fetch left in the client's own store.
func left(t *testing.T, c *Client) (out []string) {
	t.Helper()
	filepath.WalkDir(c.own, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != ".lock" {
			out = append(out, d.Name())
		}
		return nil
	})
	return out
}

func TestFetchFromAServer(t *testing.T) {
	p, data := build()
	packed := p.PDB[:len(p.PDB)-1] + "_"
	for name, content := range map[string]map[string][]byte{
		"plain": {p.PDB: data},
		"mszip": {packed: cabtest.MSZIP(p.PDB, data)},
		"lzx":   {packed: cabtest.LZX(p.PDB, data, 21, false, 1<<17)},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, files(content))
			c := client(t, "srv*"+s.URL, nil)
			fetch(t, c)
			asked := s.requests.Load()
			if files := left(t, c); len(files) != 1 || strings.HasSuffix(files[0], ".part") {
				t.Errorf("left %v", files)
			}
			// What is in the own store is not asked for again.
			fetch(t, client(t, "srv*"+c.own+"*"+s.URL, nil))
			if s.requests.Load() != asked {
				t.Errorf("%d requests where the cache has the file", s.requests.Load()-asked)
			}
		})
	}
}

// A connection that breaks is gone on with from where it broke.
func TestFetchGoesOnAfterABreak(t *testing.T) {
	p, data := build()
	var cut atomic.Int32
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if cut.Add(1) > 3 {
			files(map[string][]byte{p.PDB: data})(w, r)
			return
		}
		// Half of what is left, then the connection is gone.
		start := 0
		if v := r.Header.Get("Range"); v != "" {
			fmt.Sscanf(v, "bytes=%d-", &start)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(data)-1, len(data)))
		}
		w.Header().Set("ETag", `"one"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)-start))
		if start > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(data[start : start+(len(data)-start)/2])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	fetch(t, client(t, s.URL, nil))
	if len(s.seen) != 4 || !strings.HasSuffix(s.seen[1], fmt.Sprintf("bytes=%d-", len(data)/2)) {
		t.Errorf("requests %q", s.seen)
	}
}

// A fetch that was interrupted is gone on with by the next one, another process's too.
func TestFetchGoesOnWhereAnEarlierOneEnded(t *testing.T) {
	p, data := build()
	dir := t.TempDir()
	into := func(o *Options) { o.CacheDir = dir }
	begun := make(chan struct{})
	stuck := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data[:len(data)/3])
		w.(http.Flusher).Flush()
		close(begun)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-begun; time.Sleep(50 * time.Millisecond); cancel() }()
	if _, err := client(t, stuck.URL, into).Profile(ctx, p.Identity); !errors.Is(err, context.Canceled) {
		t.Fatalf("Profile = %v", err)
	}
	s := serve(t, files(map[string][]byte{p.PDB: data}))
	fetch(t, client(t, s.URL, into))
	if len(s.seen) != 1 || !strings.Contains(s.seen[0], "bytes=") {
		t.Errorf("requests %q, want one for a range", s.seen)
	}
}

// The server's file is another one meanwhile: it is fetched anew.
func TestAFileThatChangedIsFetchedAnew(t *testing.T) {
	p, data := build()
	var n atomic.Int32
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			w.Header().Set("ETag", `"zero"`)
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			w.Write(make([]byte, 5000))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		files(map[string][]byte{p.PDB: data})(w, r)
	})
	fetch(t, client(t, s.URL, nil))
}

func TestASilentServerIsGivenUp(t *testing.T) {
	_, data := build()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data[:1000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	mustFail(t, client(t, s.URL, func(o *Options) { o.Stall = 30 * time.Millisecond }), ErrNotFound, "no data for 30ms")
	if s.requests.Load() != attempts {
		t.Errorf("%d attempts, want %d", s.requests.Load(), attempts)
	}
	// One that drips is bounded by the time for all.
	drip := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			w.Write([]byte{0})
			w.(http.Flusher).Flush()
			time.Sleep(5 * time.Millisecond)
		}
	})
	mustFail(t, client(t, drip.URL, func(o *Options) { o.Total = 200 * time.Millisecond }), nil, "given up after 200ms")
}

func TestWrongAnswersAreNamed(t *testing.T) {
	p, data := build()
	other := *p
	store := winstruct.BuiltIn()
	o, err := store.Open(store.List()[3])
	if err != nil {
		t.Fatal(err)
	}
	other = *o
	huge := cabtest.Stored("a.pdb", []byte("x"), false)
	// The one file of the cabinet claims 4 GiB.
	copy(huge[44:], []byte{0xff, 0xff, 0xff, 0xff})
	always := func(data []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.Write(data) }
	}
	for _, tt := range []struct {
		name   string
		handle http.HandlerFunc
		want   error
		text   string
	}{
		{"nothing", http.NotFound, ErrNotFound, "not there"},
		{"a page", always([]byte("<html>Sign in to the guest network</html>")), nil, "not a PDB"},
		{"another build", always(winstructtest.PDB(&other)), ErrIdentity, other.Key()},
		{"cut off, and does not say so", always(data[:len(data)/2]), nil, "cut off"},
		{"a cabinet of 4 GiB", always(huge), nil, "4294967295"},
		{"too large", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "99999999999") }, nil, "99999999999"},
		{"without an end", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, nil, "more than the 4194304"},
		{"an odd range", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 7-9/10")
			w.WriteHeader(http.StatusPartialContent)
			w.Write([]byte("abc"))
		}, nil, "bytes 7-9/10"},
		{"no range", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusRequestedRangeNotSatisfiable) }, nil, "not part of"},
		{"refused", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusForbidden) }, nil, "403"},
		{"busy", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "99999999")
			http.Error(w, "no", http.StatusServiceUnavailable)
		}, nil, "given up after 5 attempts"},
		{"in circles", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"/x", http.StatusFound) }, nil, "redirected more than"},
		{"elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, nil, "unsupported protocol"},
		{"a closed connection", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, nil, "EOF"},
		{"no HTTP", func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
				conn.Close()
			}
		}, nil, "malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, tt.handle)
			c := client(t, "srv*"+s.URL, func(o *Options) { o.MaxSize = 4 << 20 })
			mustFail(t, c, tt.want, tt.text)
			for _, f := range left(t, c) {
				if !strings.HasSuffix(f, ".part") && !strings.HasSuffix(f, ".tag") {
					t.Errorf("%s is left as if it were the file", f)
				}
			}
		})
	}
}

func TestAirGappedAsksNoServer(t *testing.T) {
	p, data := build()
	s := serve(t, files(map[string][]byte{p.PDB: data}))
	dir := t.TempDir()
	closed := func(o *Options) { o.AirGapped = true }
	mustFail(t, client(t, "srv*"+dir+"*"+s.URL, closed), ErrAirGapped, "air-gapped")
	if s.requests.Load() != 0 {
		t.Errorf("%d requests", s.requests.Load())
	}
	// A directory is no server.
	if err := os.WriteFile(filepath.Join(dir, p.PDB), data, 0o644); err != nil {
		t.Fatal(err)
	}
	fetch(t, client(t, "srv*"+dir+"*"+s.URL, closed))
	t.Setenv(AirGapVariable, "1")
	if !AirGapped() {
		t.Error("the variable is not seen")
	}
	t.Setenv(AirGapVariable, "0")
	if AirGapped() {
		t.Error("0 does not switch it off")
	}
}

func TestDirectoriesOfEveryLayout(t *testing.T) {
	p, data := build()
	packed := p.PDB[:len(p.PDB)-1] + "_"
	for _, layout := range []string{p.PDB, p.PDB + "/" + p.Key() + "/" + p.PDB, p.PDB[:2] + "/" + p.PDB + "/" + p.Key() + "/" + p.PDB,
		p.PDB + "/" + p.Key() + "/" + packed, "symbols/exe/" + p.PDB} {
		dir, cache := t.TempDir(), t.TempDir()
		content := data
		if strings.HasSuffix(layout, "_") {
			content = cabtest.MSZIP(p.PDB, data)
		}
		path := filepath.Join(dir, layout)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		fetch(t, client(t, "cache*"+cache+";/nonexistent;"+dir, nil))
		if _, err := os.Stat(filepath.Join(cache, p.PDB, p.Key(), filepath.Base(path))); err != nil {
			t.Errorf("%s: not in the cache: %v", layout, err)
		}
	}
	// A directory with another build's file of the name.
	dir := t.TempDir()
	store := winstruct.BuiltIn()
	o, _ := store.Open(store.List()[3])
	if err := os.WriteFile(filepath.Join(dir, p.PDB), winstructtest.PDB(o), 0o644); err != nil {
		t.Fatal(err)
	}
	mustFail(t, client(t, dir, nil), ErrIdentity, o.Key())
}

func TestSymbolPaths(t *testing.T) {
	const ms = Microsoft
	for _, tt := range []struct{ path, want string }{
		{"/a", "[/a]"},
		{"srv*", "[/own " + ms + "]"},
		{"SRV*/a*" + ms, "[/a " + ms + "]"},
		{"srv**https://mirror.example/symbols/", "[/own https://mirror.example/symbols]"},
		{"srv*/a*/b*http://mirror", "[/a /b http://mirror]"},
		{"symsrv*symsrv.dll*/a*http://mirror", "[/a http://mirror]"},
		{" /a ; ;srv*http://mirror", "[/a][http://mirror]"},
		{"cache*/c;/a;http://mirror", "[/c /a][/c http://mirror]"},
		{"cache*;/a", "[/own /a]"},
		{`srv*C:\symbols*` + ms, "path of Windows"},
		{`\\server\share`, "path of Windows"},
		{"symbols", "not an absolute path"},
		{"ftp://mirror", "neither http nor https"},
		{"http://", "is no URL"},
		{"foo*bar", "none of srv"},
		{"symsrv*/a", "name of a DLL"},
		{";;", "names no place"},
		{"cache*/c", "names no place"},
	} {
		places, err := parsePath(tt.path, "/own")
		got := ""
		for _, p := range places {
			got += fmt.Sprint(p.stores)
		}
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != tt.want || !strings.Contains(got, tt.want) {
			t.Errorf("%q: %s, want %s", tt.path, got, tt.want)
		}
	}
}

// Two fetches of one file at once do not mix what they write.
func TestFetchesOfOneFileTakeTurns(t *testing.T) {
	p, data := build()
	s := serve(t, files(map[string][]byte{p.PDB: data}))
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := New(Options{Path: s.URL, CacheDir: dir})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := c.Profile(context.Background(), p.Identity); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
}

// Proxies of the environment are used. Go reads them once in a process and never for
// loopback, hence the child and the name.
func TestProxyOfTheEnvironment(t *testing.T) {
	p, data := build()
	if os.Getenv("VMAV_TEST_PROXY_CHILD") != "" {
		fetch(t, client(t, "http://symbols.invalid", nil))
		return
	}
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host != "symbols.invalid" {
			http.Error(w, "not a request to a proxy", http.StatusBadRequest)
			return
		}
		files(map[string][]byte{p.PDB: data})(w, r)
	})
	child := exec.Command(os.Args[0], "-test.run=^TestProxyOfTheEnvironment$")
	child.Env = append(os.Environ(), "VMAV_TEST_PROXY_CHILD=1", "http_proxy="+proxy.URL, "HTTP_PROXY="+proxy.URL, "no_proxy=", "NO_PROXY=")
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("child: %v\n%s", err, out)
	}
	if proxy.requests.Load() == 0 {
		t.Error("the proxy was not asked")
	}
}

func FuzzSymbolPath(f *testing.F) {
	f.Add("cache*/c;srv*/a*http://mirror;symsrv*symsrv.dll*;/b")
	f.Fuzz(func(t *testing.T, path string) {
		places, err := parsePath(path, "/own")
		if (len(places) == 0) == (err == nil) {
			t.Fatalf("%v, %v", places, err)
		}
		for _, p := range places {
			for _, s := range p.stores {
				if (s.url == nil) == (s.dir == "") {
					t.Fatalf("store %+v", s)
				}
			}
		}
	})
}
