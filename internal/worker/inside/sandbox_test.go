package inside

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/worker/broker"
)

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// actor is a source whose page-ins are applied, after a while.
type actor struct {
	source.Source
	asked  atomic.Int32
	closed atomic.Int32
	events chan source.Event
}

func (a *actor) Control() (source.Control, error) { return a, nil }
func (a *actor) SetHooks(source.Hooks) error      { return errors.New("no hooks") }
func (a *actor) Cancel(uint64) (bool, error)      { return false, nil }
func (a *actor) Close() error                     { a.closed.Add(1); return nil }
func (a *actor) Event(ctx context.Context) (source.Event, error) {
	select {
	case ev := <-a.events:
		return ev, nil
	case <-ctx.Done():
		return source.Event{}, ctx.Err()
	}
}

// Do applies later than the broker waits for an event at a time, so that it is asked for twice.
func (a *actor) Do(x *source.Action) error {
	a.asked.Add(1)
	time.AfterFunc(75*time.Millisecond, func() { a.events <- source.Event{Kind: source.EventApplied, Cookie: x.Cookie} })
	return nil
}

// Of actions a worker is lent page-ins, where its scan may have pages read in.
func TestPageInIsAllThatAWorkerIsLent(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	for _, c := range []struct {
		args  []string
		lent  bool
		want  string
		asked int32
	}{
		{[]string{"page in"}, true, "paged in", 1},
		{[]string{"page in"}, false, broker.ErrMisbehaved.Error(), 0},
		{[]string{"message", "a kill"}, true, broker.ErrMisbehaved.Error(), 0},
		{[]string{"message", "a page-in without guards"}, true, broker.ErrMisbehaved.Error(), 0},
	} {
		var req scan.Request
		if c.lent {
			req.PageIn = new(scan.PageIn)
		}
		a := &actor{Source: src, events: make(chan source.Event, 1)}
		got, err := look(&broker.Runner{Args: c.args}, scan.Target{Name: "win", Source: a}, req)
		if err != nil || !strings.Contains(got.Reason, c.want) || a.asked.Load() != c.asked {
			t.Errorf("%v, lent %v: %q, %v, %d actions", c.args, c.lent, got.Reason, err, a.asked.Load())
		}
		if c.asked > 0 && a.closed.Load() != 1 {
			t.Errorf("%v: the control is closed %d times", c.args, a.closed.Load())
		}
	}
}

// stranger scans a guest with a stranger in the worker's place, and returns what the
// broker says of it.
func stranger(t *testing.T, src source.Source, r *broker.Runner, args ...string) (finding.Scan, string) {
	t.Helper()
	r.Args = args
	got, err := look(r, scan.Target{Name: "win", Source: src}, scan.Request{})
	if err != nil {
		t.Errorf("%v: %v: no error of the whole run", args, err)
	}
	text := got.Reason
	for _, e := range got.Errors {
		text += e.What + ": " + e.Error + "\n"
	}
	if got.Status != finding.StatusFailed && got.Status != finding.StatusIncomplete || text == "" {
		t.Errorf("%v: status %s, %q: a scan without its worker is never clean", args, got.Status, text)
	}
	return got, text
}

// goesOn scans the next guest with a worker of ours.
func goesOn(t *testing.T, src source.Source) {
	t.Helper()
	got, err := look(new(broker.Runner), scan.Target{Name: "next", Source: src}, scan.Request{})
	if err != nil || got.Status != finding.StatusScanned || len(got.Findings) != 1 {
		t.Errorf("the next guest: %+v, %v", got, err)
	}
}

// What a worker's door keeps hostile code from. Run it as root and as an ordinary user.
func TestTheSandboxHolds(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGUSR2, unix.SIGIO)
	defer signal.Stop(signals)
	for _, a := range attempts {
		_, text := stranger(t, src, &broker.Runner{}, "attempt", a.name, strconv.Itoa(os.Getpid()))
		switch {
		case strings.Contains(text, "ESCAPED"):
			t.Errorf("%s: %s", a.name, text)
		case a.deadly && !strings.Contains(text, broker.ErrViolation.Error()):
			t.Errorf("%s: want the process ended and that said, got %q", a.name, text)
		case !a.deadly && !strings.Contains(text, "refused: operation not permitted") && !strings.Contains(text, "refused: function not implemented"):
			t.Errorf("%s: want it refused, got %q", a.name, text)
		}
		t.Logf("%s: %s", a.name, strings.TrimSpace(text))
	}
	select {
	case s := <-signals:
		t.Errorf("the broker got %v", s)
	default:
	}
	if _, err := os.Stat("/tmp/vmav-escaped"); err == nil {
		t.Error("a file was created")
	}
	goesOn(t, src)
}

// What a worker may send is bounded, and who sends anything else is ended.
func TestTheBrokerTakesNoMessageOfAStranger(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	for name := range messages {
		got, text := stranger(t, src, &broker.Runner{}, "message", name)
		if !strings.Contains(text, broker.ErrMisbehaved.Error()) {
			t.Errorf("%s: %q", name, text)
		}
		if len(got.Findings) > 0 || len(got.Kills) > 0 {
			t.Errorf("%s: %+v", name, got)
		}
		t.Logf("%s: %s", name, strings.TrimSpace(text))
	}
	goesOn(t, src)
}

// The end of a worker, however it comes, costs its scan and nothing else.
func TestAWorkersEndCostsOneScan(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	for name, c := range map[string]struct {
		runner *broker.Runner
		want   string
	}{
		"panic":     {&broker.Runner{}, "the worker crashed: panic: runtime error: invalid memory address"},
		"fault":     {&broker.Runner{}, "the worker crashed: unexpected fault address"},
		"abort":     {&broker.Runner{}, "the worker crashed: SIGABRT"},
		"memory":    {&broker.Runner{Memory: 512 << 20}, "the worker needed more than its 512 MiB of memory"},
		"loop":      {&broker.Runner{Silence: 500 * time.Millisecond}, "it asked for nothing in 500ms"},
		"questions": {&broker.Runner{Total: 500 * time.Millisecond}, "its guest took longer than 500ms"},
		"leave":     {&broker.Runner{}, "the worker ended without a result"},
	} {
		if name == "memory" && raceDetector {
			continue // the detector's own memory has other limits, and other last words
		}
		got, text := stranger(t, src, c.runner, name)
		if !strings.Contains(text, c.want) || got.Status != finding.StatusFailed {
			t.Errorf("%s: status %s, %q, want %q", name, got.Status, text, c.want)
		}
		t.Logf("%s: %s", name, strings.TrimSpace(text))
	}
	// What was reported before stays.
	got, text := stranger(t, src, &broker.Runner{}, "report and panic")
	if len(got.Findings) != 1 || got.Findings[0].Signature != "Vmav.Test.Malware" || got.Status != finding.StatusIncomplete ||
		!strings.Contains(text, "panic: on the way") {
		t.Errorf("%+v", got)
	}
	goesOn(t, src)
}

// A worker that is killed from outside, in the middle of its scan.
func TestAWorkerThatIsKilled(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	once := false
	h := &scantest.Heard{OnProgress: func(scan.Progress) {
		if !once {
			once = true
			scantest.KillChild(t)
		}
	}}
	got, err := h.Scan(context.Background(), new(broker.Runner).Scanner(scantest.Means(scantest.Finder{})), scan.Target{Name: "win", Source: src},
		scan.Request{})
	if err != nil || got.Status != finding.StatusIncomplete || len(got.Errors) != 1 || !strings.Contains(got.Errors[0].Error, "SIGKILL") {
		t.Errorf("%+v, %v", got, err)
	}
	goesOn(t, src)
}

func TestTry(t *testing.T) {
	got, err := new(broker.Runner).Try(context.Background())
	if err != nil || (got.User == "") != (os.Geteuid() != 0) {
		t.Errorf("%+v, %v", got, err)
	}
	if os.Geteuid() == 0 {
		if got, err := (&broker.Runner{User: "root"}).Try(context.Background()); err == nil {
			t.Errorf("with root's rights: %+v", got)
		}
	}
}

// A host without the sandbox scans nothing, rather than without one.
func TestNoSandboxNoScan(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	got, _ := look(&broker.Runner{User: "root"}, scan.Target{Name: "win", Source: src}, scan.Request{})
	if os.Geteuid() == 0 && (got.Status != finding.StatusFailed || !strings.Contains(got.Reason, "root's rights")) {
		t.Errorf("%+v", got)
	}
}

// The door is the same for a worker of an ordinary user, who cannot change its user.
func TestTheSandboxHoldsForAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this is one")
	}
	dir, err := os.Getwd()
	for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		var st os.FileInfo
		if st, err = os.Stat(dir); err == nil && st.Mode()&0o5 != 0o5 {
			t.Skipf("an ordinary user does not come into %s", dir)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^(TestTheSandboxHolds|TestTheBrokerTakesNoMessageOfAStranger|TestAWorkersEndCostsOneScan)$", "-test.v")
	cmd.Env = append(os.Environ(), "TMPDIR="+os.TempDir(), "HOME=/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestTheSandboxHolds") {
		t.Errorf("%v\n%s", err, out)
	}
}
