package watch

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/sourcetest"
	"vmav.dev/vmav/internal/winstruct"
)

// heard records what the watch recorded.
type heard struct {
	nobody
	mu       *sync.Mutex
	findings *[]finding.Finding
	all      *int
	fail     *error
}

func (h heard) Account(string, string, bool) respond.Account { return h }

func (h heard) Found(_ context.Context, f *finding.Finding, _ scan.Content) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if *h.fail != nil {
		return *h.fail
	}
	*h.findings = append(*h.findings, *f)
	return nil
}

func (h heard) End(_ context.Context, _ *finding.Scan) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*h.all++
}

// bench is the watch of a laid-out guest.
type bench struct {
	t        *testing.T
	m        *ntguest.Machine
	mem      *sourcetest.Guest // over m
	guest    *introspect.Guest
	svc      *Service
	s        *guestWatch
	mu       sync.Mutex
	findings []finding.Finding
	ended    int // accounts
	fail     error
	done     chan error
}

func newBench(t *testing.T) *bench {
	t.Helper()
	m, err := ntguest.Lay(ntguest.Options{Build: "10.0.19041", Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, m: m, mem: sourcetest.New(m, m.Memory), done: make(chan error, 1)}
	if b.guest, err = introspect.Open(context.Background(), b.mem, winstruct.BuiltIn()); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(t.TempDir(), "test.ndb")
	if err := os.WriteFile(db, []byte("Vmav.Test.Malware:1:*:"+hex.EncodeToString([]byte("VMAV-TEST-MALWARE"))+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.svc = quiet(t, Options{Engine: clam.Options{Databases: []string{db}, TempDir: t.TempDir()}, Profiles: winstruct.BuiltIn(),
		Request: scan.Request{MinCoverage: scan.DefaultMinCoverage}, Accounts: heard{mu: &b.mu, findings: &b.findings, all: &b.ended, fail: &b.fail}})
	t.Cleanup(b.svc.engine.Close)
	return b
}

// run starts the watch.
func (b *bench) run() {
	b.t.Helper()
	f := newFollower(b.svc, domain.Domain{ID: 1, Name: "win", UUID: "u", State: "running", Running: true})
	f.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	var err error
	if b.s, err = newGuestWatch(f, b.mem, b.guest); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { b.done <- b.s.run(ctx) }()
	b.t.Cleanup(func() { cancel(); <-b.done })
}

// await waits until so many findings were recorded, and sees that there are no more.
func (b *bench) await(what string, n int) []finding.Finding {
	b.t.Helper()
	for range 3000 {
		b.mu.Lock()
		found, ended := len(b.findings), b.ended
		b.mu.Unlock()
		if found >= n && ended > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.findings) != n {
		b.t.Fatalf("%s: %d findings, want %d: %+v", what, len(b.findings), n, b.findings)
	}
	return b.findings
}

// What came just before the watch began is looked at again, as what comes later is; what
// the guest's clock tells nothing of is not.
func TestWhatHasJustComeIsNew(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	procs, _, err := b.guest.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var newest time.Time
	for _, p := range procs {
		if p.Created.After(newest) {
			newest = p.Created
		}
	}
	const clock = 0xfffff78000000014 // KUSER_SHARED_DATA.SystemTime
	set := func(at uint64) {
		b.put(clock, at)
		b.put(clock+4, at>>32|at>>32<<32)
	}
	for _, c := range []struct {
		name  string
		at    uint64
		young bool
	}{
		{"5 s later", uint64(newest.Add(5*time.Second).UnixNano()/100) + 116444736000000000, true},
		{"a minute later", uint64(newest.Add(time.Minute).UnixNano()/100) + 116444736000000000, false},
		{"no time", 0, false},
	} {
		set(c.at)
		f := newFollower(b.svc, domain.Domain{ID: 1, Name: "win", UUID: "u", State: "running", Running: true})
		f.log = slog.New(slog.NewTextHandler(io.Discard, nil))
		s, err := newGuestWatch(f, b.mem, b.guest)
		if err == nil {
			err = s.enumerate(ctx, true)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range procs {
			if want := c.young && newest.Sub(p.Created) < 5*time.Second; s.procs[p.Identity()].old == want {
				t.Errorf("%s: %s, which came %v before the newest, counts as old: %v", c.name, p.Name, newest.Sub(p.Created), !want)
			}
		}
	}
}

// fields are where a test writes.
type fields struct {
	Root     uint32          `win:"_EPROCESS.VadRoot.Root"`
	Count    uint32          `win:"_EPROCESS.VadCount"`
	ExitTime uint32          `win:"_EPROCESS.ExitTime"`
	Left     uint32          `win:"_MMVAD_SHORT.VadNode.Left"`
	Right    uint32          `win:"_MMVAD_SHORT.VadNode.Right"`
	Start    winstruct.Field `win:"_MMVAD_SHORT.StartingVpn"`
	High     uint32          `win:"_MMVAD_SHORT.StartingVpnHigh"`
}

// put writes a word at a kernel address of the guest.
func (b *bench) put(va, v uint64) {
	b.t.Helper()
	gpa, err := b.guest.Memory().Translate(va)
	if err != nil {
		b.t.Fatal(err)
	}
	b.mem.Put(gpa, v, 8)
}

func (b *bench) word(va uint64) uint64 {
	b.t.Helper()
	var p [8]byte
	if err := b.guest.Memory().Read(p[:], va); err != nil {
		b.t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(p[:])
}

// link finds the pointer to the descriptor of the range at base in a process's tree.
func (b *bench) link(f *fields, eprocess, base uint64) uint64 {
	b.t.Helper()
	todo := []uint64{eprocess + uint64(f.Root)}
	for len(todo) > 0 {
		at := todo[0]
		todo = todo[1:]
		node := b.word(at)
		if node == 0 {
			continue
		}
		vpn := b.word(node+uint64(f.Start.Offset))&0xffffffff | b.word(node+uint64(f.High))&0xff<<32
		if vpn == base>>12 {
			return at
		}
		todo = append(todo, node+uint64(f.Left), node+uint64(f.Right))
	}
	b.t.Fatalf("no range at %#x", base)
	return 0
}

// mapsLate has the guest's malware.exe not have mapped its program yet, runs the watch
// until what comes counts as new, and returns the process and what maps the program.
func (b *bench) mapsLate(f *fields) (malware *introspect.Process, maps func()) {
	b.t.Helper()
	if err := winstruct.Compile(b.m.Profile(), f); err != nil {
		b.t.Fatal(err)
	}
	procs, _, err := b.guest.Processes(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	for i := range procs {
		if procs[i].Name == "malware.exe" {
			malware = &procs[i]
		}
	}
	link := b.link(f, malware.EPROCESS, malware.SectionBase)
	node, count := b.word(link), b.word(malware.EPROCESS+uint64(f.Count))
	b.put(link, 0)
	b.put(malware.EPROCESS+uint64(f.Count), count-1)
	b.guest.Refresh()
	b.run()
	b.await("before it is mapped", 0)
	for range 300 {
		b.s.mu.Lock()
		swept := b.s.swept
		b.s.mu.Unlock()
		if swept {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return malware, func() {
		b.put(link, node)
		b.put(malware.EPROCESS+uint64(f.Count), count)
	}
}

// An image that a process maps while it is watched is scanned when it is there, once; the
// program here is one that its process maps late.
func TestANewImageIsScanned(t *testing.T) {
	b, f := newBench(t), new(fields)
	malware, maps := b.mapsLate(f)
	maps()
	got := b.await("when it is mapped", 1)
	if got[0].PID != malware.PID || got[0].Signature != "Vmav.Test.Malware" {
		t.Errorf("%+v", got[0])
	}
	// Another change of the same address space: nothing is told again.
	count := malware.EPROCESS + uint64(f.Count)
	b.put(count, b.word(count)+1)
	b.await("when something else is mapped", 1)

	// QEMU ends: so does the watch, and says so.
	b.mem.End()
	err := <-b.done
	b.done <- err
	if !errors.Is(err, source.ErrGone) {
		t.Errorf("the watch ended with %v", err)
	}
}

// dying makes scanners whose first scans of each single process break off.
type dying struct {
	inProcess
	deaths int
	mu     *sync.Mutex
	tried  map[uint64][]time.Time // by process id
}

func (d dying) Keep(m scan.Means) scan.Kept { return dyingScanner{scan.InProcess{Means: m}, d} }

type dyingScanner struct {
	scan.InProcess
	dying
}

func (d dyingScanner) Scan(ctx context.Context, t scan.Target, req scan.Request, on scan.Events) (finding.Scan, error) {
	d.mu.Lock()
	tries := 0
	for _, f := range req.Focus {
		d.tried[f.ID.PID] = append(d.tried[f.ID.PID], time.Now())
		tries = len(d.tried[f.ID.PID])
	}
	d.mu.Unlock()
	if tries > 0 && tries <= d.deaths {
		out := scan.Empty(t)
		out.Reason = "the worker was ended by SIGKILL"
		return out, nil
	}
	return d.InProcess.Scan(ctx, t, req, on)
}

// A scan of a process that broke off is made again, ever later, also where something goes
// on changing in the process; what it was to find is found.
func TestAScanThatBrokeOffIsMadeAgain(t *testing.T) {
	b, f := newBench(t), new(fields)
	const deaths = 3
	tried := make(map[uint64][]time.Time)
	b.svc.opt.Scanners = dying{deaths: deaths, mu: &b.mu, tried: tried}
	malware, maps := b.mapsLate(f)
	maps()
	for count := malware.EPROCESS + uint64(f.Count); ; time.Sleep(20 * time.Millisecond) {
		b.mu.Lock()
		found := len(b.findings)
		b.mu.Unlock()
		if found > 0 {
			break
		}
		b.put(count, b.word(count)^64)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	at := tried[malware.PID]
	if len(at) <= deaths {
		t.Fatalf("%d tries", len(at))
	}
	for i := range deaths {
		if wait := at[i+1].Sub(at[i]); wait < brokenRetry<<i {
			t.Errorf("try %d came %v after the one before", i+2, wait)
		}
	}
	if b.findings[0].PID != malware.PID {
		t.Errorf("%+v", b.findings[0])
	}
}

// What could not be recorded is recorded when it is found again.
func TestAFindingThatWasNotRecordedIsNotLost(t *testing.T) {
	b := newBench(t)
	b.mu.Lock()
	b.fail = os.ErrDeadlineExceeded
	b.mu.Unlock()
	b.run()
	b.await("while nothing can be recorded", 0)
	b.mu.Lock()
	b.fail = nil
	b.mu.Unlock()
	if ok, err := b.s.sweep(context.Background(), TriggerTimer); !ok || err != nil {
		t.Fatal(ok, err)
	}
	b.await("in the next sweep", 1)
	if ok, err := b.s.sweep(context.Background(), TriggerTimer); !ok || err != nil {
		t.Fatal(ok, err)
	}
	b.await("in one more", 1)
}
