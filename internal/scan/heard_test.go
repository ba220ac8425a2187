package scan

import (
	"context"
	"sync"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/winstruct"
)

// options are a Request, and what a test wants to hear of.
type options struct {
	PIDs        []uint64
	Jobs        int
	MinCoverage float64
	Content     bool
	Progress    func(Progress)
	Found       func(Found)
}

// heard puts together what Events are told of.
type heard struct {
	opt options

	mu       sync.Mutex
	findings []finding.Finding
	unread   []finding.Unread
}

func (h *heard) Found(_ context.Context, f Found) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.findings = append(h.findings, f.Finding)
	if h.opt.Found != nil {
		h.opt.Found(f)
	}
}

func (h *heard) Unread(u finding.Unread) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unread = append(h.unread, u)
}

func (h *heard) Looked(introspect.Identity, ImageKey, bool) {}

func (h *heard) Progress(p Progress) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.opt.Progress != nil {
		h.opt.Progress(p)
	}
}

// look scans a guest in this process. Its result has what Events were told of.
func look(ctx context.Context, t Target, m Means, opt options) (finding.Scan, error) {
	h := &heard{opt: opt}
	d, err := InProcess{Means: m}.Scan(ctx, t, Request{PIDs: opt.PIDs, Jobs: opt.Jobs, MinCoverage: opt.MinCoverage, Content: opt.Content}, h)
	finding.Sort(h.findings)
	d.Findings, d.Errors = h.findings, h.unread
	if d.Status == finding.StatusScanned && len(d.Errors) > 0 {
		d.Status = finding.StatusIncomplete
	}
	return d, err
}

// builtIn are means with the built-in profiles.
func builtIn(e Engine, m Memory) Means {
	return Means{Profiles: winstruct.BuiltIn(), Engine: e, Memory: m}
}
