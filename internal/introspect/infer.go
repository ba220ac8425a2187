package introspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"vmav.dev/vmav/internal/winstruct"
)

// Neighbours offers profiles of other builds, ordered by how near they are to a version. If
// a guest's build has no profile, Open reads the guest with the offsets of the first
// neighbour that fits.
//
// Whether a profile fits is proven in the guest's memory: each offset leads to a value with
// known properties. System has pid 4, lists close, names are printable, times are
// plausible, pointers lead to the right structures. A profile is rejected if an
// indispensable offset is not proven. Any other offset that is not proven is left unused,
// and Kernel.Unproven names it. Symbols are never taken from another build: they are found
// in the guest, or not used.
type Neighbours interface {
	winstruct.Finder
	// Near returns the builds in the order of their distance from a version, "10.0.19041".
	Near(version string) []winstruct.Entry
	// Open loads the profile of one of them.
	Open(winstruct.Entry) (*winstruct.Profile, error)
}

// ErrNoNeighbour reports a guest that the offsets of none of the known builds fit.
var ErrNoNeighbour = errors.New("the offsets of no build that is known could be proven in it")

// Bounds on the search: the number of different layouts that are tried, and the time for
// all of them. Only a hostile guest uses up that time.
const (
	maxNeighbours = 12
	maxInfer      = 10 * time.Second
)

// infer sets g up to be read with the offsets of a near build.
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
		trial, pr, err := g.tryOffsets(ctx, off, system)
		if err != nil {
			if len(tried) == 1 {
				reason = fmt.Errorf("%w: with those of %s, %w", ErrNoNeighbour, entry.Version, err)
			}
			continue
		}
		trial.kernel.Inferred, trial.kernel.Unproven = entry.Version, append(trial.kernel.Unproven, pr.unproven...)
		if err := trial.adoptSystem(); err != nil {
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

// tryOffsets proves offsets in the guest. If the System process can be read with them but a
// later proof fails, it tries again: a running guest may have changed a list during the
// proof.
func (g *Guest) tryOffsets(ctx context.Context, off *Offsets, system uint64) (trial *Guest, pr *prover, err error) {
	for range 3 {
		mine := *off
		trial = &Guest{src: g.src, t: g.t, as: g.as, kernel: g.kernel, off: &mine}
		pr = &prover{ctx: ctx, g: trial, system: system}
		if err = pr.prove(); err == nil || !pr.systemRead || ctx.Err() != nil {
			break
		}
		g.Refresh()
	}
	return trial, pr, err
}

// nearVersion returns the version that the guest claims, from KUSER_SHARED_DATA and the
// exported build number. It only decides the order in which neighbours are tried.
func (g *Guest) nearVersion(number uint64) string {
	var b [8]byte
	if number != 0 && g.as.Read(b[:4], g.kernel.Base+number) == nil {
		g.kernel.Build = binary.LittleEndian.Uint32(b[:]) & 0xffff
	}
	return g.version()
}
