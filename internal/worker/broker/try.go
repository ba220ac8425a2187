package broker

import (
	"context"
	"errors"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// Sandbox says what confines the workers of this host.
type Sandbox struct {
	User     string // user that they run as; "" for the user that runs vmav
	Landlock int    // version of the kernel's Landlock; 0 if it has none
}

// Try starts a worker with nothing to do, and ends it. The error says why this host cannot
// run workers.
func (r *Runner) Try(ctx context.Context) (Sandbox, error) {
	t := scan.Target{Name: "nothing", State: scan.StateImage, Source: noGuest{}}
	m := scan.Means{Profiles: winstruct.BuiltIn(), Engine: noEngine{}}
	j := newJob(t, m, scan.NewCache().For(ctx, nil), scan.Request{Jobs: 1}, noEvents{})
	d, err := (&Kept{r: r, m: m, single: true}).run(ctx, j)
	if err != nil {
		return Sandbox{}, err
	}
	if !j.taken {
		return Sandbox{}, errors.New(d.Reason)
	}
	return Sandbox{User: j.user, Landlock: j.abi}, nil
}

// noGuest is a guest without memory.
type noGuest struct{}

func (noGuest) ReadPhys(p []byte, addr uint64) error {
	return &source.AccessError{Addr: addr, Size: len(p), Err: source.ErrHole}
}
func (noGuest) Ranges() []source.Range { return nil }
func (noGuest) Registers(context.Context) ([]source.Registers, error) {
	return nil, source.ErrNoRegisters
}
func (noGuest) Info() source.Info { return source.Info{Kind: source.KindImage, Name: "nothing"} }
func (noGuest) Close() error      { return nil }

// noEngine is an engine that is never asked.
type noEngine struct{}

func (noEngine) Scan(context.Context, string, []byte) (answer.Result, error) {
	return answer.Result{}, answer.ErrNoEngine
}

// noEvents ignores what it is told of a scan.
type noEvents struct{}

func (noEvents) Found(context.Context, scan.Found)               {}
func (noEvents) Looked(introspect.Identity, scan.ImageKey, bool) {}
func (noEvents) Unread(finding.Unread)                           {}
func (noEvents) Progress(scan.Progress)                          {}
