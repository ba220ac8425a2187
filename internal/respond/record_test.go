package respond

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vmav.dev/vmav/internal/evidence"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
)

// listener is a recorder that numbers findings and keeps what it is told.
type listener struct {
	mu    sync.Mutex
	next  int64
	told  []string
	found map[int64]finding.Finding
	err   error
	check func(f *finding.Finding, x scan.Content)
}

func (l *listener) Found(_ context.Context, f *finding.Finding, x scan.Content) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	f.ID = l.next
	l.found[f.ID] = *f
	l.told = append(l.told, "found "+string(f.Verdict.Action))
	l.check(f, x)
	return l.err
}

func (l *listener) Acting(_ context.Context, a verdict.Action, f []finding.Finding) error {
	l.told = append(l.told, fmt.Sprintf("acting %s %d", a, len(f)))
	return l.err
}

func (l *listener) Acted(_ context.Context, a verdict.Action, f []finding.Finding, k *finding.Kill, act *finding.Act) error {
	var o finding.Outcome
	if k != nil {
		o = k.Outcome
	} else {
		o = act.Outcome
	}
	l.told = append(l.told, fmt.Sprintf("acted %s %d %s", a, len(f), o.Code))
	if f[0].Action != a || f[0].Outcome != o {
		l.told = append(l.told, "too early")
	}
	return l.err
}

// Every finding reaches the recorder with the bytes that it was found in, and has the number
// that the recorder gave it; implants and changed code, too.
func TestARecorderGetsEveryFindingAndItsBytes(t *testing.T) {
	var kinds sync.Map
	l := &listener{found: map[int64]finding.Finding{}}
	l.check = func(f *finding.Finding, x scan.Content) {
		kinds.Store(f.Kind+" "+f.Fidelity.Form, true)
		if sum := fmt.Sprintf("%x", sha256.Sum256(x.Scanned)); sum != f.SHA256 {
			t.Errorf("%s: bytes with the SHA-256 %s, want %s", f.Signature, sum, f.SHA256)
		}
		if (x.Fidelity != nil) != (f.Fidelity.Form == finding.FormFile) || x.Fidelity != nil && uint64(len(x.Memory)) < f.Size {
			t.Errorf("%s of %d bytes: %d bytes of memory, fidelity %v", f.Signature, f.Size, len(x.Memory), x.Fidelity)
		}
	}
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3, Implants: true})
	got := respondTo(t, scanner(scantest.Engine(t)), scan.Target{Name: "win", Source: src}, Options{Recorder: l})
	if len(got.Findings) < 3 || len(got.Findings) != len(l.found) {
		t.Errorf("%d findings, %d told", len(got.Findings), len(l.found))
	}
	for _, f := range got.Findings {
		if told := l.found[f.ID]; told.Signature != f.Signature || told.PID != f.PID || told.Base != f.Base {
			t.Errorf("number %d: %+v, told %+v", f.ID, f, told)
		}
	}
	for _, want := range []string{"signature file", "signature memory", "modified file"} {
		if _, ok := kinds.Load(want); !ok {
			t.Errorf("no finding that is %s", want)
		}
	}
}

// What is done is told of in its order; a kill that cannot be begun was not asked of the
// guest. A recorder that fails leaves the result incomplete and does not end it.
func TestARecorderThatFailsLeavesTheResultIncomplete(t *testing.T) {
	e := scantest.Engine(t)
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	for _, fails := range []error{nil, errors.New("the disk is full")} {
		l := &listener{found: map[int64]finding.Finding{}, err: fails, check: func(*finding.Finding, scan.Content) {}}
		got := respondTo(t, scanner(e), scan.Target{Name: "win", Source: src}, Options{Recorder: l})
		if len(got.Findings) != 1 {
			t.Fatalf("%+v", got)
		}
		want := finding.StatusScanned
		if fails != nil {
			want = finding.StatusIncomplete
		}
		if got.Status != want || (len(got.Errors) != 0) != (fails != nil) || fails != nil && !strings.Contains(got.Errors[0].Error, fails.Error()) {
			t.Errorf("%v: status %s, errors %v", fails, got.Status, got.Errors)
		}
	}
	paused := false
	target := scan.Target{Name: "win", Source: source.NewCache(src, 64),
		Domain: &libvirt{paused: func() bool { return paused }, suspend: func() error { paused = true; return nil }}}
	dry := verdict.Always(verdict.Suspend)
	dry.DryRun = true
	for _, c := range []struct {
		policy verdict.Policy
		want   string
	}{
		{verdict.Always(verdict.Kill), "found kill, acted kill 1 refused"},
		{verdict.Always(verdict.Hold), "found hold, acted hold 1 refused"},
		{dry, "found suspend, acted suspend 1 planned"},
		{verdict.Always(verdict.Suspend), "found suspend, acting suspend 1, acted suspend 1 suspended"},
	} {
		l := &listener{found: map[int64]finding.Finding{}, check: func(*finding.Finding, scan.Content) {}}
		respondTo(t, scanner(e), target, Options{Policy: c.policy, Recorder: l})
		if got := strings.Join(l.told, ", "); got != c.want {
			t.Errorf("told: %s, want %s", got, c.want)
		}
	}
}

// warned keeps what it is told.
type warned struct{ texts []string }

func (w *warned) Warn(format string, args ...any) {
	w.texts = append(w.texts, fmt.Sprintf(format, args...))
}

// What there is no room for is said in the record of the finding, which is kept.
func TestAFullStoreOfEvidence(t *testing.T) {
	dir := t.TempDir()
	w := &warned{}
	r, err := OpenRecords(RecordOptions{Directory: dir, Origin: history.Self(history.TriggerCLI, nil), Evidence: filepath.Join(dir, "evidence"),
		Limits: evidence.Limits{Size: 1000}, Always: true, Wanted: true, Warner: w})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	n := r.Begin(ctx, "win10", "")
	f := finding.Finding{Signature: "A", Verdict: verdict.Verdict{Action: verdict.Report}}
	noise := make([]byte, 5000)
	for i := range noise {
		noise[i] = byte(i * i >> 3)
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(noise), func(i, j int) { noise[i], noise[j] = noise[j], noise[i] })
	err = n.Found(ctx, &f, scan.Content{Scanned: noise, Memory: []byte("small")})
	if !errors.Is(err, evidence.ErrFull) || f.ID == 0 {
		t.Errorf("finding %d, %v", f.ID, err)
	}
	r.Close()
	db, err := history.OpenExisting(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d, err := db.Show(ctx, f.ID)
	if err != nil || len(d.Evidence) != 2 || !strings.Contains(d.Evidence[0].Error, "full") || d.Evidence[1].SHA256 == "" {
		t.Errorf("%+v, %v", d.Evidence, err)
	}
}

// Of what is new in a guest there are many scans: those that find nothing leave no record,
// and those of everything always do.
func TestAnAccountOfNothingNewLeavesNoRecord(t *testing.T) {
	dir := t.TempDir()
	r, err := OpenRecords(RecordOptions{Directory: dir, Origin: history.Self(history.TriggerWatch, nil), Warner: &warned{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	done := func() *finding.Scan { return &finding.Scan{Name: "win10", Status: finding.StatusScanned} }
	r.Account("win10", "", false).End(ctx, done())
	found := r.Account("win10", "", false)
	f := finding.Finding{Signature: "A", Verdict: verdict.Verdict{Action: verdict.Report}}
	if err := found.Found(ctx, &f, scan.Content{}); err != nil || f.ID == 0 {
		t.Fatalf("finding %d, %v", f.ID, err)
	}
	d := done()
	d.Findings = []finding.Finding{f}
	found.End(ctx, d)
	r.Account("win11", "", true).End(ctx, done())
	r.Close()
	db, err := history.OpenExisting(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	runs, err := db.Scans(ctx, history.Filter{})
	if err != nil || len(runs) != 2 || runs[0].Domain != "win11" || runs[0].Findings != 0 || runs[1].Domain != "win10" || runs[1].Findings != 1 {
		t.Errorf("%+v, %v", runs, err)
	}
}

// A finding that is not recorded because the record of its scan could not begin is not
// taken for a recorded one: it leaves the result incomplete, and is recorded when it is
// found again.
func TestAScanWhoseRecordCannotBegin(t *testing.T) {
	dir, w, known := t.TempDir(), &warned{}, new(Known)
	open := func() *Records {
		r, err := OpenRecords(RecordOptions{Directory: dir, Origin: history.Self(history.TriggerWatch, nil), Warner: w})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	by := forger{finding.Finding{Kind: finding.KindSignature, Signature: "A"}}
	try := func(r *Records) finding.Scan {
		return respondTo(t, by, scan.Target{Name: "win"}, Options{Recorder: r.Account("win", "", false), Known: known})
	}
	r := open()
	if err := r.db.Close(); err != nil {
		t.Fatal(err)
	}
	if d := try(r); d.Status != finding.StatusIncomplete || len(d.Errors) != 1 || len(w.texts) != 1 {
		t.Errorf("%s, %v; warnings %q", d.Status, d.Errors, w.texts)
	}
	r = open()
	defer r.Close()
	if d := try(r); d.Status != finding.StatusScanned || d.Findings[0].ID == 0 || d.Findings[0].Again {
		t.Errorf("found again: %+v", d)
	}
}

// A finding that a service knows has one record, however many sweeps find it.
func TestWhatIsKnownHasOneRecord(t *testing.T) {
	dir := t.TempDir()
	r, err := OpenRecords(RecordOptions{Directory: dir, Origin: history.Self(history.TriggerWatch, nil), Warner: &warned{}})
	if err != nil {
		t.Fatal(err)
	}
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	known := new(Known)
	for range 3 {
		a := r.Account("win", "", true)
		d := respondTo(t, scanner(scantest.Finder{}), scan.Target{Name: "win", Source: src}, Options{Known: known, Recorder: a})
		a.End(context.Background(), &d)
		if len(d.Findings) != 1 || len(d.Errors) != 0 {
			t.Fatalf("%+v", d)
		}
	}
	r.Close()
	db, err := history.OpenExisting(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	runs, err := db.Scans(context.Background(), history.Filter{})
	if err != nil || len(runs) != 3 {
		t.Errorf("%d runs, %v; want 3", len(runs), err)
	}
	all, err := db.Entries(context.Background(), history.Filter{})
	if err != nil || len(all) != 1 {
		t.Errorf("%d records of one finding, %v", len(all), err)
	}
}
