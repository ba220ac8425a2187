package memhook

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// regsTimeout is the time that one vCPU may take to leave guest mode, in ms.
const regsTimeout = 500

// Registers implements source.Source. A running vCPU is interrupted for it, and a halted
// one is read as it is. A vCPU that runs a nested guest is left out, because its state is
// that guest's. It fails if no vCPU can be read, and with source.ErrNoRegisters if none
// ever can.
func (g *Guest) Registers(ctx context.Context) ([]source.Registers, error) {
	info, err := g.info()
	if err != nil {
		return nil, err
	}
	var out []source.Registers
	var errs []error
	for i := range info.VCPUs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		arg := regsArg{VCPU: i, TimeoutMs: regsTimeout}
		err := g.call(getRegs, unsafe.Pointer(&arg))
		switch {
		case errors.Is(err, source.ErrGone), errors.Is(err, source.ErrClosed):
			return nil, err
		case errors.Is(err, unix.EOPNOTSUPP):
			err = source.ErrNoRegisters // a confidential guest
		}
		if err != nil {
			errs = append(errs, &OpError{Op: fmt.Sprintf("read registers of vCPU %d", i), PID: g.pid, Err: err})
			continue
		}
		if arg.Flags&regsNested != 0 {
			continue
		}
		out = append(out, registersOf(&arg))
	}
	if len(out) == 0 {
		if len(errs) == 0 {
			return nil, source.ErrNoRegisters
		}
		return nil, errors.Join(errs...)
	}
	return out, nil
}

func (g *Guest) info() (infoArg, error) {
	var info infoArg
	if err := g.call(getInfo, unsafe.Pointer(&info)); err != nil {
		return info, err
	}
	if info.State&stateGone != 0 {
		return info, source.ErrGone
	}
	return info, nil
}

func registersOf(a *regsArg) source.Registers {
	seg := func(s segmentArg) source.Segment { return source.Segment{Selector: s.Selector, Base: s.Base} }
	return source.Registers{CPU: int(a.VCPU), RIP: a.RIP, RSP: a.GPR[4], RFLAGS: a.RFLAGS, GPR: a.GPR,
		CS: seg(a.CS), SS: seg(a.SS), FS: seg(a.FS), GS: seg(a.GS), CPL: uint8(a.CPL & 3),
		CR0: a.CR0, CR2: a.CR2, CR3: a.CR3, CR4: a.CR4, EFER: a.EFER, LSTAR: a.LSTAR, KernelGSBase: a.KernelGSBase,
		IDTBase: a.IDT.Base, IDTLimit: a.IDT.Limit, GDTBase: a.GDT.Base, Halted: a.Flags&regsHalted != 0}
}
