package worker

import (
	"context"
	"errors"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/winstruct"
)

// Sandbox says what keeps this host's workers in.
type Sandbox struct {
	User     string // that they run as; "" for the user that runs vmav
	Landlock int    // version of the kernel's Landlock, 0 where it has none
}

// Try makes a worker with nothing to do. It fails with the reason why this host can make
// none.
func (r *Runner) Try(ctx context.Context) (Sandbox, error) {
	t := sweep.Target{Name: "nothing", State: sweep.StateImage, Source: nothing{}}
	s := newSession(t, winstruct.BuiltIn(), noEngine{}, sweep.NewCache().Session(context.Background(), nil), sweep.Options{Jobs: 1})
	if err := (&Kept{r: r, once: true}).run(ctx, s); err != nil {
		return Sandbox{}, err
	}
	if !s.taken {
		return Sandbox{}, errors.New(s.out.Reason)
	}
	return Sandbox{User: s.user, Landlock: s.abi}, nil
}

// nothing is a guest without memory.
type nothing struct{}

func (nothing) ReadPhys(p []byte, addr uint64) error {
	return &source.AccessError{Addr: addr, Size: len(p), Err: source.ErrHole}
}
func (nothing) Ranges() []source.Range { return nil }
func (nothing) Registers(context.Context) ([]source.Registers, error) {
	return nil, source.ErrNoRegisters
}
func (nothing) Info() source.Info { return source.Info{Kind: "image", Name: "nothing"} }
func (nothing) Close() error      { return nil }

// noEngine is never asked.
type noEngine struct{}

func (noEngine) Scan(context.Context, string, []byte) (clam.Result, error) {
	return clam.Result{}, clam.ErrNoEngine
}
