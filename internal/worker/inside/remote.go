package inside

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/window"
	"vmav.dev/vmav/internal/worker/wire"
)

// lanes are the free lanes of a worker.
type lanes chan *wire.Lane

// ask takes a free lane for one exchange. n fills the window and returns the number of
// bytes; it may be nil. answer reads the answer in the lane and keeps no part of it; it may
// be nil.
func (ls lanes) ask(kind byte, n func(l *wire.Lane) int, args []byte, answer func(l *wire.Lane, f wire.Frame) error) error {
	l := <-ls
	defer func() { ls <- l }()
	size := 0
	if n != nil {
		size = n(l)
	}
	f, err := l.Call(kind, size, args)
	if err == nil {
		err = wire.ErrorOf(f)
	}
	if err == nil && answer != nil {
		err = answer(l, f)
	}
	return err
}

// remote is the guest as a worker reads it, through the broker. It implements source.Source
// and source.BatchReader.
type remote struct {
	lanes  lanes
	info   source.Info
	mapped *window.Guest // nil for none
}

// ReadPhys implements source.Source.
func (g *remote) ReadPhys(p []byte, addr uint64) error {
	if g.mapped.Read(p, addr) {
		return nil
	}
	for start, size := addr, len(p); len(p) > 0; {
		n := min(len(p), wire.WindowSize)
		reqs := [1]source.Request{{Addr: addr, P: p[:n]}}
		if err := g.exchange(reqs[:]); err != nil {
			return err
		}
		if err := reqs[0].Err; err != nil {
			if access := new(source.AccessError); errors.As(err, &access) {
				err = access.Err
			}
			return &source.AccessError{Addr: start, Size: size, Err: err}
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// ReadPhysBatch implements source.BatchReader.
func (g *remote) ReadPhysBatch(reqs []source.Request) error {
	return source.FailAll(reqs, g.batch(reqs))
}

func (g *remote) batch(reqs []source.Request) error {
	for len(reqs) > 0 {
		if r := &reqs[0]; len(r.P) == 0 || g.mapped.Read(r.P, r.Addr) {
			r.Err = nil
			reqs = reqs[1:]
			continue
		}
		// If memory is mapped, a request rarely gets here, so it goes alone. Otherwise
		// requests go together.
		n, bytes := 0, 0
		for n < len(reqs) && n < wire.MaxReads && bytes+len(reqs[n].P) <= wire.WindowSize && (n == 0 || g.mapped == nil) {
			reqs[n].Err = nil
			bytes += len(reqs[n].P)
			n++
		}
		if n == 0 { // larger than the window
			reqs[0].Err = g.ReadPhys(reqs[0].P, reqs[0].Addr)
			if err := reqs[0].Err; errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) {
				return err
			}
			reqs = reqs[1:]
			continue
		}
		if err := g.exchange(reqs[:n]); err != nil {
			return err
		}
		reqs = reqs[n:]
	}
	return nil
}

// exchange lets the broker serve requests that fit into a window together.
func (g *remote) exchange(reqs []source.Request) error {
	l := <-g.lanes
	defer func() { g.lanes <- l }()
	packet := l.Begin(wire.AskRead)
	asked := 0
	for i := range reqs {
		if len(reqs[i].P) > 0 {
			packet = wire.AppendRead(packet, reqs[i].Addr, len(reqs[i].P))
			asked++
		}
	}
	if asked == 0 {
		return nil
	}
	f, err := l.Exchange(packet)
	if err != nil {
		return fmt.Errorf("%w: %w", source.ErrClosed, err)
	}
	if err := wire.ErrorOf(f); err != nil {
		return err
	}
	if len(f.Args) != asked {
		return fmt.Errorf("%w: the broker answers %d reads with %d", source.ErrClosed, asked, len(f.Args))
	}
	at, i := 0, 0
	for k := range reqs {
		r := &reqs[k]
		if len(r.P) == 0 {
			continue
		}
		if status := f.Args[i]; status == wire.StatusOK {
			copy(r.P, l.Window[at:])
		} else {
			r.Err = &source.AccessError{Addr: r.Addr, Size: len(r.P), Err: wire.StatusError(status)}
		}
		at += len(r.P)
		i++
	}
	return nil
}

// Ranges implements source.Source. It returns guest RAM as the broker has it now.
func (g *remote) Ranges() (out []source.Range) {
	err := g.lanes.ask(wire.AskRanges, nil, nil, func(l *wire.Lane, f wire.Frame) error {
		for p := l.Window[:f.N]; len(p) >= 16; p = p[16:] {
			out = append(out, source.Range{Start: binary.LittleEndian.Uint64(p), Size: binary.LittleEndian.Uint64(p[8:])})
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return out
}

// Registers implements source.Source.
func (g *remote) Registers(ctx context.Context) (out []source.Registers, err error) {
	err = g.lanes.ask(wire.AskRegisters, nil, nil, func(l *wire.Lane, f wire.Frame) error { return json.Unmarshal(l.Window[:f.N], &out) })
	return out, err
}

// Info implements source.Source.
func (g *remote) Info() source.Info { return g.info }

// Close implements source.Source. It does nothing, because the broker closes the guest.
func (g *remote) Close() error { return nil }
