package worker

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/window"
)

// lanes are the lanes of a worker that are free.
type lanes chan *lane

// ask takes a free lane for one exchange. answer looks at what came, in the lane, and
// keeps nothing of it.
func (ls lanes) ask(kind byte, n func(l *lane) int, args []byte, answer func(l *lane, f frame) error) error {
	l := <-ls
	defer func() { ls <- l }()
	size := 0
	if n != nil {
		size = n(l)
	}
	f, err := l.call(kind, size, args)
	if err == nil {
		err = errorOf(f)
	}
	if err == nil && answer != nil {
		err = answer(l, f)
	}
	return err
}

// guest is the guest as the broker reads it for a worker. It implements source.Source
// and BatchReader.
type guest struct {
	lanes  lanes
	info   source.Info
	mapped *window.Guest // nil for none
}

// ReadPhys implements source.Source.
func (g *guest) ReadPhys(p []byte, addr uint64) error {
	if g.mapped.Read(p, addr) {
		return nil
	}
	for start, size := addr, len(p); len(p) > 0; {
		n := min(len(p), windowSize)
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
func (g *guest) ReadPhysBatch(reqs []source.Request) error {
	return source.FailAll(reqs, g.batch(reqs))
}

func (g *guest) batch(reqs []source.Request) error {
	for len(reqs) > 0 {
		if r := &reqs[0]; len(r.P) == 0 || g.mapped.Read(r.P, r.Addr) {
			r.Err = nil
			reqs = reqs[1:]
			continue
		}
		// Of what is mapped hardly anything fails; without a mapping they go together.
		n, bytes := 0, 0
		for n < len(reqs) && n < maxReads && bytes+len(reqs[n].P) <= windowSize && (n == 0 || g.mapped == nil) {
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

// exchange has the broker serve requests that fit a window together.
func (g *guest) exchange(reqs []source.Request) error {
	l := <-g.lanes
	defer func() { g.lanes <- l }()
	l.out = append(l.out[:0], askRead, 0, 0, 0, 0)
	asked := 0
	for i := range reqs {
		if len(reqs[i].P) > 0 {
			l.out = appendRead(l.out, reqs[i].Addr, len(reqs[i].P))
			asked++
		}
	}
	if asked == 0 {
		return nil
	}
	f, err := l.exchange()
	if err != nil {
		return fmt.Errorf("%w: %w", source.ErrClosed, err)
	}
	if err := errorOf(f); err != nil {
		return err
	}
	if len(f.args) != asked {
		return fmt.Errorf("%w: the broker answers %d reads with %d", source.ErrClosed, asked, len(f.args))
	}
	at, i := 0, 0
	for k := range reqs {
		r := &reqs[k]
		if len(r.P) == 0 {
			continue
		}
		if status := f.args[i]; status == statusOK {
			copy(r.P, l.window[at:])
		} else {
			r.Err = &source.AccessError{Addr: r.Addr, Size: len(r.P), Err: errorOf(frame{code: status, args: readFailure(status)})}
		}
		at += len(r.P)
		i++
	}
	return nil
}

func readFailure(status byte) []byte {
	if int(status) < len(sentinels) && sentinels[status] != nil {
		return []byte(sentinels[status].Error())
	}
	return []byte("it cannot be read")
}

// Ranges implements source.Source. It is guest RAM as the broker has it now.
func (g *guest) Ranges() (out []source.Range) {
	err := g.lanes.ask(askRanges, nil, nil, func(l *lane, f frame) error {
		for p := l.window[:f.n]; len(p) >= 16; p = p[16:] {
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
func (g *guest) Registers(ctx context.Context) (out []source.Registers, err error) {
	err = g.lanes.ask(askRegisters, nil, nil, func(l *lane, f frame) error { return json.Unmarshal(l.window[:f.n], &out) })
	return out, err
}

// Info implements source.Source.
func (g *guest) Info() source.Info { return g.info }

// Close implements source.Source. The guest is the broker's to close.
func (g *guest) Close() error { return nil }
