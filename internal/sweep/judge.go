package sweep

import (
	"context"
	"sync"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
)

// Judge is the part of a sweep that decides on findings and acts, for a guest that is
// swept somewhere else (Options.Found).
type Judge struct{ s *sweep }

// NewJudge makes a judge over a target's findings.
func NewJudge(t Target, opt Options) *Judge {
	opt.Sink = sinkOf(opt.Sink)
	return &Judge{&sweep{target: t, opt: opt, out: Empty(t)}}
}

// Result is what findings and actions are noted in, and the lock that guards it as long as
// Found may be called.
func (j *Judge) Result() (*finding.Scan, *sync.Mutex) { return &j.s.out, &j.s.mu }

// Found decides on a finding in a process, or in the kernel where p is nil, whose Subject
// is set. It may be called by several at once.
func (j *Judge) Found(ctx context.Context, p *introspect.Process, f finding.Finding, x Exhibit) {
	j.s.judge(ctx, p, f, x)
}

// Reads tells whether anything is to be carried out for which the guest is read.
func (j *Judge) Reads() bool { return len(j.s.doomed) > 0 && j.s.target.State != StateImage }

// Act carries the verdicts out; g is the guest, which may be nil where none reads it.
func (j *Judge) Act(ctx context.Context, g *introspect.Guest) {
	j.s.guest = g
	j.s.act(ctx)
}
