package introspect

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/winstruct"
)

// TEB is a copy of a thread environment block. The process itself can write to it.
type TEB struct {
	Address    uint64
	Self       uint64 // its own address, according to the block
	PID, TID   uint64
	StackBase  uint64 // the first address above the stack
	StackLimit uint64 // the lowest committed address
	LastError  uint32
	LastStatus uint32
}

// ReadTEB reads the TEB at an address of a process. It is that of the guest's own pointer
// size, also in a wow64 process.
func (g *Guest) ReadTEB(p *Process, at uint64) (TEB, error) {
	o := &g.off.TEB
	t := TEB{Address: at}
	as := g.Space(p)
	for _, f := range []struct {
		off  uint32
		into *uint64
	}{{o.Self, &t.Self}, {o.PID, &t.PID}, {o.TID, &t.TID}, {o.StackBase, &t.StackBase}, {o.StackLimit, &t.StackLimit}} {
		if f.off == winstruct.Missing {
			return t, errors.New("the profile has no TEB")
		}
		v, err := as.word(at + uint64(f.off))
		if err != nil {
			return t, fmt.Errorf("read TEB at %#x: %w", at, err)
		}
		*f.into = v
	}
	for _, f := range []struct {
		off  uint32
		into *uint32
	}{{o.LastError, &t.LastError}, {o.LastStatus, &t.LastStatus}} {
		if f.off == winstruct.Missing {
			return t, errors.New("the profile has no TEB")
		}
		v, err := as.integer(at+uint64(f.off), 4)
		if err != nil {
			return t, fmt.Errorf("read TEB at %#x: %w", at, err)
		}
		*f.into = uint32(v)
	}
	return t, nil
}

// RestoreTEB writes the last error and the last status of t back to the TEB that t was read
// from, with one call of write for each.
func (g *Guest) RestoreTEB(t TEB, write func(p []byte, va uint64) error) error {
	for _, f := range []struct{ off, v uint32 }{{g.off.TEB.LastError, t.LastError}, {g.off.TEB.LastStatus, t.LastStatus}} {
		if err := write(binary.LittleEndian.AppendUint32(nil, f.v), t.Address+uint64(f.off)); err != nil {
			return err
		}
	}
	return nil
}
