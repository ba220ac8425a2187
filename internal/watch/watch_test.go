package watch

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func quiet(t *testing.T, o Options) *Service {
	t.Helper()
	o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	if o.Runtime == "" {
		o.Runtime = t.TempDir()
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhichDomainsAreWatched(t *testing.T) {
	for _, tt := range []struct {
		include, exclude []string
		name             string
		want             bool
	}{
		{nil, nil, "win", true},
		{[]string{"win*"}, nil, "win-1", true},
		{[]string{"win*"}, nil, "debian", false},
		{nil, []string{"*-test"}, "win-test", false},
		{[]string{"win*"}, []string{"win-2"}, "win-2", false},
		{patterns([]string{`a*[b]?\`}), nil, `a*[b]?\`, true},
		{patterns([]string{`a*`}), nil, `ab`, false},
	} {
		o := Options{Include: tt.include, Exclude: tt.exclude}
		if err := o.complete(); err != nil {
			t.Fatal(err)
		}
		if got := o.wanted(tt.name); got != tt.want {
			t.Errorf("%q in %q without %q: %v", tt.name, tt.include, tt.exclude, got)
		}
	}
	if _, err := New(Options{Include: []string{"[a"}}); err == nil {
		t.Error("a pattern that is none is taken")
	}
}

// The share is kept over time, whatever was used before, and what was not used does not
// add up.
func TestTheBudgetOwesWhatWasUsedBeyondTheShare(t *testing.T) {
	start := time.Unix(1000, 0)
	b := &budget{share: 0.5, since: start}
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	use := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	for _, tt := range []struct{ now, used, engine, want float64 }{
		{0.5, 0.1, 0, 0},
		{0.5, 0.5, 0, 0.5}, // a quarter beyond half of a half
		{1.0, 0.5, 0, 0},
		{1.0, 0.3, 0.5, 0.6}, // clamd's counts
		{100, 2, 0, 0},       // from here on anew
		{100, 2.5, 0, 1},
		{101, 2.5, 0, 0},
		{200, 60, 0, 16},
	} {
		b.scanned(use(tt.engine))
		if got := b.owed(at(tt.now), use(tt.used)).Seconds(); math.Abs(got-tt.want) > 1e-6 {
			t.Errorf("at %v s, %v s used: %v s owed, want %v", tt.now, tt.used, got, tt.want)
		}
	}
}

// A sweep that computes without end is held at its share. The share is compared with what
// was used in the same run.
func TestPaceKeepsTheShare(t *testing.T) {
	b := newBudget(&Options{CPU: 30, Slots: 4, Scanners: inProcess{}})
	begin, before := time.Now(), b.used()
	for time.Since(begin) < 3*time.Second {
		if err := b.pace(context.Background()); err != nil {
			t.Fatal(err)
		}
		for n := b.used(); b.used()-n < 5*time.Millisecond; {
			_ = fmt.Sprint(n)
		}
	}
	share := (b.used() - before).Seconds() / time.Since(begin).Seconds()
	if share > 0.45 { // a slice of a second may be ahead
		t.Errorf("%.2f of a processor used, 0.30 allowed", share)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.pace(ctx); err == nil {
		t.Error("goes on although it was stopped")
	}
}

// ask sends lines to a service's socket and returns its answers.
func ask(t *testing.T, path string, lines ...string) []string {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewScanner(c)
	in.Buffer(nil, 1<<20)
	var out []string
	for _, l := range lines {
		if _, err := c.Write([]byte(l + "\n")); err != nil {
			break
		}
		if !in.Scan() {
			break
		}
		out = append(out, in.Text())
	}
	return out
}

func TestTheSocketAnswersEverybodyAndTrustsNobody(t *testing.T) {
	s := quiet(t, Options{})
	k, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	file := SocketPath(s.opt.Runtime)
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil || st.Mode&0o777 != 0o660 {
		t.Errorf("the socket's mode is %o, %v", st.Mode, err)
	}
	got := ask(t, file, `{"op":"status"}`, `{"op":"hint","hint":{"domain":"win","operation":"started"}}`, `{"op":"hint"}`,
		`{"op":"hint","hint":{"domain":"","operation":"x"}}`, `no json`, `{"op":"kill"}`, `[]`)
	for i, want := range []string{`"domains":[]`, `{}`, "no operation", "names no domain", "request:", "no operation", "request:"} {
		if i >= len(got) || !strings.Contains(got[i], want) {
			t.Errorf("answers %q, want %q at %d", got, want, i)
		}
	}
	if h := <-k.hints; h != (Hint{Domain: "win", Operation: "started"}) {
		t.Errorf("the hint became %+v", h)
	}
	if got := ask(t, file, strings.Repeat("x", 2*maxLine)); len(got) > 0 {
		t.Errorf("a line without end is answered by %q", got)
	}
	// More clients than are served, which say nothing: the next one is refused, and others
	// are served again when they have gone.
	var idle []net.Conn
	for range maxClients {
		c, err := net.Dial("unix", file)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	if got := ask(t, file, `{"op":"status"}`); len(got) > 0 {
		t.Errorf("client %d is served", maxClients+1)
	}
	for _, c := range idle {
		c.Close()
	}
	for range 100 {
		if got = ask(t, file, `{"op":"status"}`); len(got) == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(got) != 1 {
		t.Error("nobody is served any more")
	}
	// A second service does not take the socket of a living one: the lock is first.
	if s.opt.Runtime != filepath.Dir(file) {
		t.Error("elsewhere")
	}
}

func TestGroupsOfAPeer(t *testing.T) {
	got := parseGroups("Name:\tx\nGroups:\t4 24 27 x -1 99999999999\nVmSize:\t1 kB\n")
	if fmt.Sprint(got) != "[4 24 27]" {
		t.Errorf("%v", got)
	}
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{`{"op":"status"}`, `{"op":"hint","hint":{"domain":"a","operation":"b"}}`, `{"op":1}`, `{`} {
		f.Add([]byte(s))
	}
	s, err := New(Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Runtime: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	k := &socket{s: s, hints: make(chan Hint, 1)}
	f.Fuzz(func(t *testing.T, line []byte) {
		a := k.answer(line)
		if _, err := json.Marshal(a); err != nil {
			t.Error(err)
		}
		select {
		case h := <-k.hints:
			if a.Error != "" || h.Check() != nil {
				t.Errorf("%q: an error %q and a hint %+v", line, a.Error, h)
			}
		default:
		}
	})
}
