package sweep

import (
	"context"
	"fmt"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/verdict"
)

// Sink is told of a sweep's findings and actions as they come about, before the sweep's
// result tells of them. Several workers call it at once. An error leaves the sweep
// incomplete and does not end it: a guest is defended also where nothing can be recorded.
type Sink interface {
	// Found is called when a finding has been decided on. It may set the finding's ID and
	// Evidence. The exhibit is the worker's own and valid until Found returns. It may be
	// empty where neither the verdict nor Options.Exhibits asks for it: what was found is
	// known from an earlier sweep.
	Found(ctx context.Context, f *finding.Finding, x Exhibit) error
	// Acting is called before an action is carried out for findings: of one process, or of
	// the whole domain. It is not called for what is only planned, or not to be had at all.
	Acting(ctx context.Context, action verdict.Action, findings []finding.Finding) error
	// Acted is called when it is known what became of it, which the findings say, with the
	// record of the kill, or of the other action.
	Acted(ctx context.Context, action verdict.Action, findings []finding.Finding, k *finding.Kill, a *finding.Act) error
}

// Exhibit is what a finding was found in.
type Exhibit struct {
	Scanned  []byte       // what the engine saw: a rebuilt file, or memory
	Memory   []byte       // the image as it is mapped, absent pages as zeros; nil where Scanned is memory
	Fidelity *pe.Fidelity // of a rebuilt file, else nil
}

// noSink is told in vain.
type noSink struct{}

func (noSink) Found(context.Context, *finding.Finding, Exhibit) error          { return nil }
func (noSink) Acting(context.Context, verdict.Action, []finding.Finding) error { return nil }
func (noSink) Acted(context.Context, verdict.Action, []finding.Finding, *finding.Kill, *finding.Act) error {
	return nil
}

// sinkOf is a sink, or one that is told in vain.
func sinkOf(s Sink) Sink {
	if s == nil {
		return noSink{}
	}
	return s
}

// unrecorded notes that the sink did not take something.
func (s *sweep) unrecorded(f *finding.Finding, err error) {
	if err != nil {
		s.fail(fmt.Sprintf("record of %s in process %d (%s)", f.Signature, f.PID, f.Process), err)
	}
}
