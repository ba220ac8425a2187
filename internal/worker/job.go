package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/sweep"
)

// job is what a worker is to do: one sweep.
type job struct {
	Name, UUID, State string
	Info              source.Info
	At                introspect.Place // of the guest's kernel, where that was found before
	Near              bool             // profiles of near builds are offered
	PIDs              []uint64
	Focus             []sweep.Focused
	Jobs              int
	MinCoverage       float64
	Secret            [32]byte // that pages are digested under
	Content           bool     // findings come with what they were found in
	Seen              bool     // images that were looked at are to be reported
	PageIn            *pageIn  // nil for none
	Controlled        bool     // the source can have pages read in
}

// job is the session's job, as it is handed out.
func (s *session) job(ctx context.Context) ([]byte, error) {
	_, near := s.profiles.(introspect.Neighbours)
	t := s.target
	j := &job{Name: t.Name, UUID: t.UUID, State: t.State, Info: s.src.Info(), Near: near, PIDs: s.opt.PIDs, Focus: s.opt.Focus, Jobs: s.opt.Jobs,
		MinCoverage: s.opt.MinCoverage, Secret: s.cache.Secret(), Content: s.opt.Found != nil || s.opt.Sink != nil, Seen: s.opt.Seen != nil}
	if s.opt.Open != nil { // where it fails, the worker searches
		if g, err := s.opt.Open(ctx); err == nil {
			j.At = g.Kernel().Place()
		}
	}
	if o := s.opt.PageInOptions; s.opt.PageIn {
		j.PageIn = &pageIn{o.Pages, o.ProcessPages, o.Wait, o.Time}
		_, j.Controlled = s.src.(source.Controller)
	}
	text, err := json.Marshal(j)
	if err == nil && len(text) > windowSize {
		err = fmt.Errorf("it has %d bytes, and %d are possible", len(text), windowSize)
	}
	if err != nil {
		return nil, fmt.Errorf("make a worker's job: %w", err)
	}
	return text, nil
}

// result is what a worker says at the end, beside what it has reported on the way.
type result struct {
	Scan finding.Scan // without findings and errors
	// Ended says why the sweep ended early, "" where it did not.
	Ended string
}

// Bounds on what a worker may report of one guest.
const (
	maxFindings = 10000
	maxReported = 64 << 20 // bytes of findings and errors, as they come
	maxContent  = 512 << 20
	maxCount    = 1 << 40
)

// check refuses what no sweep says of a finding. What it holds of text is a guest's, and
// is escaped where it is printed.
func (f *found) check() error {
	x := &f.Finding
	switch x.Kind {
	case finding.KindSignature:
	case finding.KindModified:
		if s := x.Signature; s != finding.ModifiedCode && s != finding.ModifiedHeaders && s != finding.ModifiedFile {
			return fmt.Errorf("a modification called %q", clip(s))
		}
	default:
		return fmt.Errorf("a finding of kind %q", clip(x.Kind))
	}
	if len(x.SHA256) != 64 {
		return fmt.Errorf("a finding with %d digits of SHA-256", len(x.SHA256))
	}
	if x.Fidelity.Form != finding.FormFile && x.Fidelity.Form != finding.FormMemory {
		return fmt.Errorf("a finding in the form %q", clip(x.Fidelity.Form))
	}
	if k := x.Subject.Kernel; k != (f.Process == nil) || !k && x.Subject.PID != f.Process.PID {
		return fmt.Errorf("a finding in process %d of another", x.Subject.PID)
	}
	if c := x.Fidelity.Coverage; !(c >= 0 && c <= 1) {
		return fmt.Errorf("a finding with a coverage of %v", c)
	}
	return nil
}

// check refuses what no sweep comes to.
func (r *result) check() error {
	d := &r.Scan
	switch d.Status {
	case finding.StatusScanned, finding.StatusIncomplete, finding.StatusSkipped, finding.StatusFailed:
	default:
		return fmt.Errorf("the status %q", clip(d.Status))
	}
	for _, n := range []int{d.Processes, d.Ended, d.Images, d.Unchanged, d.Files, d.Regions, d.Partial, d.PageIns} {
		if n < 0 || n > maxCount {
			return fmt.Errorf("a count of %d", n)
		}
	}
	for _, t := range []float64{d.Timing.Locate, d.Timing.Enumerate, d.Timing.Rebuild, d.Timing.Scan, d.Timing.Total} {
		if !(t >= 0 && t < 1e9) {
			return fmt.Errorf("a time of %v seconds", t)
		}
	}
	if len(d.Findings) > 0 || len(d.Errors) > 0 || len(d.Kills) > 0 || len(d.Actions) > 0 {
		return errors.New("findings, errors or actions where there is no place for them")
	}
	return nil
}

// adopt makes d what the worker says it is, as far as that is for the worker to say.
func (r *result) adopt(d *finding.Scan) {
	s := r.Scan
	s.Name, s.UUID, s.State, s.Source = d.Name, d.UUID, d.State, d.Source
	s.Findings, s.Errors, s.Kills, s.Actions = d.Findings, d.Errors, nil, nil
	if s.Status == finding.StatusScanned && len(s.Errors) > 0 {
		s.Status = finding.StatusIncomplete
	}
	*d = s
}

// cachePages is the page cache of a worker's single reads: 16 MiB.
const cachePages = 4096
