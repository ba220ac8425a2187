package sweep

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/verdict"
)

// doomed is a process that is to be killed, and the findings that say so.
type doomed struct {
	process  *introspect.Process
	findings []int
}

// doom notes a process to kill for the finding of an index. The caller holds the lock.
func (s *sweep) doom(p *introspect.Process, finding int) {
	if s.doomed == nil {
		s.doomed = make(map[uint64]*doomed)
	}
	d := s.doomed[p.EPROCESS]
	if d == nil {
		d = &doomed{process: p}
		s.doomed[p.EPROCESS] = d
	}
	d.findings = append(d.findings, finding)
}

// kill carries out the verdicts, once for each process, when all has been scanned: what
// ends in mid-scan would leave the scan incomplete. A kill that is not known to have
// worked is an error of the sweep.
func (s *sweep) kill(ctx context.Context) {
	var all []*doomed
	for _, d := range s.doomed {
		all = append(all, d)
	}
	if len(all) == 0 {
		return
	}
	slices.SortFunc(all, func(a, b *doomed) int { return cmp.Compare(a.process.PID, b.process.PID) })
	opt := s.opt.Kill
	opt.Policy = s.opt.Policy
	if opt.Paused == nil {
		opt.Paused = s.target.Paused
	}
	engine, err := kill.New(s.target.Name, s.guest, s.target.Source)
	for _, d := range all {
		var k *report.Kill
		if err != nil {
			k = kill.Refuse(s.target.Name, d.process, err)
		} else {
			k = engine.Kill(ctx, d.process, opt)
		}
		s.out.Kills = append(s.out.Kills, k)
		for _, i := range d.findings {
			f := &s.out.Findings[i]
			f.Action, f.Outcome = verdict.Kill, k.String()
		}
		if !k.Ended() && k.Outcome != report.OutcomePlanned {
			s.fail(fmt.Sprintf("kill process %d (%s)", d.process.PID, d.process.Name), fmt.Errorf("%s", k))
		}
	}
}
