package introspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"vmav.dev/vmav/internal/winstruct"
)

// Neighbours offers the profiles of other builds, those nearest to a version first. A
// guest whose own build has no profile is read with the offsets of the first one that
// can be proven: every offset is held against what the guest's memory must be if it is
// right. System is pid 4, lists close, names are names, times are times, pointers lead
// where they must. An offset that reading cannot do without and that is not proven rules
// the profile out; another is not used, and Kernel.Unproven names it. Symbols are taken
// from no other build: they are found in the guest, or not used.
type Neighbours interface {
	winstruct.Finder
	Near(version string) []winstruct.Entry
	Open(winstruct.Entry) (*winstruct.Profile, error)
}

// ErrNoNeighbour reports a guest that the offsets of no known build fit.
var ErrNoNeighbour = errors.New("the offsets of no build that is known could be proven in it")

// Bounds on the search: different layouts that are tried, and the time for all of them,
// which only a hostile guest uses up.
const (
	maxNeighbours = 12
	maxInfer      = 10 * time.Second
)

// infer makes g a guest that is read with the offsets of a near build.
func (g *Guest) infer(ctx context.Context, near Neighbours) error {
	ex, err := readExports(g.as, g.kernel.Base)
	if err != nil {
		return fmt.Errorf("infer a profile: %w", err)
	}
	sym := func(name string) (uint64, error) {
		rva, err := ex.find(name)
		if err != nil && !errors.Is(err, ErrNotPresent) {
			return 0, fmt.Errorf("infer a profile: find the export %s: %w", name, err)
		}
		return rva, nil
	}
	initial, err := sym("PsInitialSystemProcess")
	if err != nil {
		return err
	}
	if initial == 0 {
		return errors.New("infer a profile: the kernel's export PsInitialSystemProcess is not there")
	}
	system, err := g.as.word(g.kernel.Base + initial)
	if err != nil {
		return fmt.Errorf("infer a profile: read PsInitialSystemProcess: %w", err)
	}
	if system == 0 {
		return fmt.Errorf("%w: its kernel has no process yet", ErrBooting)
	}
	modules, err := sym("PsLoadedModuleList")
	if err != nil {
		return err
	}
	number, err := sym("NtBuildNumber")
	if err != nil {
		return err
	}
	version := g.nearVersion(number)
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, maxInfer)
	defer cancel()
	tried := make(map[Offsets]bool)
	reason := ErrNoNeighbour
	for _, entry := range near.Near(version) {
		if err := parent.Err(); err != nil {
			return err
		}
		if len(tried) == maxNeighbours || ctx.Err() != nil {
			break
		}
		if (entry.Arch == winstruct.ArchX64) != g.as.f.wide() {
			continue
		}
		p, err := near.Open(entry)
		if err != nil {
			continue
		}
		off, err := compileOffsets(p)
		if err != nil {
			continue
		}
		off.Sym.ActiveProcessHead, off.Sym.CidTable, off.Sym.MiState = 0, 0, 0
		off.Sym.LoadedModuleList, off.Sym.BuildNumber = modules, number
		if tried[*off] {
			continue
		}
		tried[*off] = true
		trial, pr, err := g.try(ctx, off, system)
		if err != nil {
			if len(tried) == 1 {
				reason = fmt.Errorf("%w: with those of %s, %w", ErrNoNeighbour, entry.Version, err)
			}
			continue
		}
		trial.kernel.Inferred, trial.kernel.Unproven = entry.Version, pr.unproven
		if err := trial.bind(); err != nil {
			return fmt.Errorf("infer a profile: %w", err)
		}
		if off.InvalidPteMask != winstruct.Missing {
			trial.as.soft.unknown = true
			trial.kernel.Unproven = append(trial.kernel.Unproven, "MiState")
		}
		*g = *trial
		return nil
	}
	return reason
}

// try holds offsets against the guest. Where they fit as far as System goes they are
// tried again: a guest that runs may have changed a list in the middle of a proof.
func (g *Guest) try(ctx context.Context, off *Offsets, system uint64) (trial *Guest, pr *prover, err error) {
	for range 3 {
		mine := *off
		trial = &Guest{src: g.src, t: g.t, as: g.as, kernel: g.kernel, off: &mine}
		pr = &prover{ctx: ctx, g: trial, system: system}
		if err = pr.prove(); err == nil || !pr.near || ctx.Err() != nil {
			break
		}
		g.Refresh()
	}
	return trial, pr, err
}

// nearVersion is what the guest says its version is: KUSER_SHARED_DATA and the exported
// build number. It decides the order of what is tried, and nothing else.
func (g *Guest) nearVersion(number uint64) string {
	var b [8]byte
	if number != 0 && g.as.Read(b[:4], g.kernel.Base+number) == nil {
		g.kernel.Build = binary.LittleEndian.Uint32(b[:]) & 0xffff
	}
	return g.version()
}
