// Package scantest has what tests of scanners and of responses share: a laid-out guest,
// engines that know its malware, and Events that keep what they are told.
package scantest

import (
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/image"
	"vmav.dev/vmav/internal/subject"
	"vmav.dev/vmav/internal/winstruct"
)

// Malware is text in the code of the guest's malware.exe (testdata/ntguest/user/malware.c).
// Signature is the name that the engines here have for it.
const (
	Malware   = "VMAV-TEST-MALWARE"
	Signature = "Vmav.Test.Malware"
)

// Engine starts a clamd that knows the guest's malware and its implants. It is closed when
// the test ends.
func Engine(t testing.TB) *clam.Engine {
	t.Helper()
	var text string
	for name, marker := range map[string]string{Signature: Malware, "Vmav.Test.Implant": ntguest.ImplantMarker, "Vmav.Test.Unpacked": ntguest.UnpackedMarker} {
		text += name + ":0:*:" + hex.EncodeToString([]byte(marker)) + "\n"
	}
	db := filepath.Join(t.TempDir(), "test.ndb")
	if err := os.WriteFile(db, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	e, err := clam.Open(context.Background(), clam.Options{Databases: []string{db}, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// Finder is an engine for tests that need no real one. It looks for the malware itself.
type Finder struct{}

// Identity implements scan.Identified.
func (Finder) Identity(context.Context) string { return "finder" }

// Scan implements scan.Engine.
func (Finder) Scan(_ context.Context, _ string, data []byte) (answer.Result, error) {
	if strings.Contains(string(data), Malware) {
		return answer.Result{Signature: Signature}, nil
	}
	return answer.Result{}, nil
}

// Silent is an engine that finds nothing and takes no time.
type Silent struct{}

// Scan implements scan.Engine.
func (Silent) Scan(context.Context, string, []byte) (answer.Result, error) {
	return answer.Result{}, nil
}

// Guest writes a test guest's memory to a file and opens it. The source is closed when the
// test ends.
func Guest(t testing.TB, opts ntguest.Options) (source.Source, *ntguest.Truth) {
	t.Helper()
	m, err := ntguest.Lay(opts)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "guest.raw")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	src, err := image.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src, m.Truth
}

// Focus finds the process of the guest's malware for a focused scan.
func Focus(t testing.TB, src source.Source) scan.Focused {
	t.Helper()
	g, err := introspect.Open(context.Background(), src, winstruct.BuiltIn())
	if err != nil {
		t.Fatal(err)
	}
	procs, _, err := g.Processes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i := range procs {
		if p := &procs[i]; p.Name == "malware.exe" {
			return scan.Focused{ID: p.Identity(), Parent: subject.Parent(p, procs)}
		}
	}
	t.Fatal("no malware in the guest")
	return scan.Focused{}
}

// Means returns the built-in profiles, an engine, and an empty memory.
func Means(e scan.Engine) scan.Means {
	return scan.Means{Profiles: winstruct.BuiltIn(), Engine: e, Memory: scan.NewCache()}
}

// Heard keeps what it is told of a scan. It implements scan.Events.
type Heard struct {
	OnFound    func(scan.Found) // nil for none, like the others
	OnLooked   func(introspect.Identity)
	OnProgress func(scan.Progress)

	mu       sync.Mutex
	Findings []finding.Finding
	Errors   []finding.Unread
	telling  sync.Mutex // held while OnLooked or OnProgress runs
}

// Found implements scan.Events.
func (h *Heard) Found(_ context.Context, f scan.Found) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Findings = append(h.Findings, f.Finding)
	if h.OnFound != nil {
		h.OnFound(f)
	}
}

// Unread implements scan.Events.
func (h *Heard) Unread(u finding.Unread) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Errors = append(h.Errors, u)
}

// Looked implements scan.Events.
func (h *Heard) Looked(p introspect.Identity, _ scan.ImageKey, _ bool) {
	h.telling.Lock()
	defer h.telling.Unlock()
	if h.OnLooked != nil {
		h.OnLooked(p)
	}
}

// Progress implements scan.Events.
func (h *Heard) Progress(p scan.Progress) {
	h.telling.Lock()
	defer h.telling.Unlock()
	if h.OnProgress != nil {
		h.OnProgress(p)
	}
}

// Scan lets a scanner scan a guest, and returns a result with what was heard.
func (h *Heard) Scan(ctx context.Context, s scan.Scanner, t scan.Target, req scan.Request) (finding.Scan, error) {
	d, err := s.Scan(ctx, t, req, h)
	finding.Sort(h.Findings)
	d.Findings, d.Errors = h.Findings, h.Errors
	if d.Status == finding.StatusScanned && len(d.Errors) > 0 {
		d.Status = finding.StatusIncomplete
	}
	return d, err
}

// Scan calls Heard.Scan with a new Heard.
func Scan(ctx context.Context, s scan.Scanner, t scan.Target, req scan.Request) (finding.Scan, error) {
	return new(Heard).Scan(ctx, s, t, req)
}
