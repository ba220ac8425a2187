package introspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	"vmav.dev/vmav/internal/winstruct"
)

// Ways in which a process was found.
const (
	SourceList = "list" // PsActiveProcessHead
	SourceCID  = "cid"  // PspCidTable, the table of process and thread ids
)

// Flags of a process.
const (
	FlagExited    = "exited"
	FlagHidden    = "hidden"    // in the id table, not on the process list
	FlagCritical  = "critical"  // Windows stops when it ends
	FlagProtected = "protected" // a protected process
	FlagPartial   = "partial"   // not all of it could be read
	FlagInferred  = "inferred"  // read with the offsets of another build
)

// Processes lists the guest's processes in the order of their ids. It reads the process
// list in both directions, and the table of process and thread ids, so that unlinked
// processes are found. What could not be read comes back as problems; it is an error if
// nothing could.
func (g *Guest) Processes(ctx context.Context) ([]Process, []Problem, error) {
	var problems []Problem
	found := make(map[uint64][]string) // EPROCESS → where
	if err := g.processList(ctx, found, &problems); err != nil {
		return nil, nil, err
	}
	objects, err := g.cidTable(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil, err
		}
		problems = append(problems, Problem{What: "process id table", Err: err})
	}
	rec := g.as.newRecord(g.off.Process.Size)
	for _, at := range objects {
		if _, known := found[at]; !known && !g.isProcess(rec, at) {
			continue
		}
		found[at] = append(found[at], SourceCID)
	}
	out := make([]Process, 0, len(found))
	for at, sources := range found {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		p, probs := g.process(rec, at)
		p.Sources = sources
		if len(objects) > 0 && !slices.Contains(sources, SourceList) {
			p.Flags = append(p.Flags, FlagHidden)
		}
		out = append(out, p)
		problems = append(problems, probs...)
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].PID != out[j].PID {
			return out[i].PID < out[j].PID
		}
		return out[i].EPROCESS < out[j].EPROCESS
	})
	sort.SliceStable(problems, func(i, j int) bool { return problems[i].What < problems[j].What })
	return out, problems, nil
}

// processList follows the process list forwards and, if that way is cut, backwards.
func (g *Guest) processList(ctx context.Context, found map[uint64][]string, problems *[]Problem) error {
	head := g.kernel.Base + g.off.Sym.ActiveProcessHead
	visit := func(entry uint64) bool {
		at := entry - uint64(g.off.Process.Links)
		if _, seen := found[at]; seen {
			return false
		}
		found[at] = []string{SourceList}
		return true
	}
	ferr := g.as.walkList(ctx, head, 0, maxProcesses, visit)
	if ferr == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	*problems = append(*problems, Problem{What: "process list", Err: ferr})
	if berr := g.as.walkList(ctx, head, uint64(g.as.ptr), maxProcesses, visit); berr != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if len(found) == 0 {
		return fmt.Errorf("read the process list: %w", ferr)
	}
	return nil
}

// errList reports a list that does not lead back to its head.
var errList = errors.New("the list does not close")

// walkList follows a LIST_ENTRY chain from its head: by Flink if link is 0, by Blink if link is
// the size of a pointer. It calls visit with the address of each entry. If visit returns
// false the walk ends: the entry was reached before from the other direction.
func (as *AddressSpace) walkList(ctx context.Context, head, link uint64, limit int, visit func(entry uint64) bool) error {
	at, err := as.word(head + link)
	if err != nil {
		return err
	}
	seen := make(map[uint64]struct{})
	for at != head {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, again := seen[at]; again || len(seen) >= limit {
			return fmt.Errorf("%w: after %d entries it is back at %#x", errList, len(seen), at)
		}
		seen[at] = struct{}{}
		next, err := as.word(at + link)
		if err != nil {
			return fmt.Errorf("entry %d: %w", len(seen), err)
		}
		if !visit(at) {
			return nil
		}
		at = next
	}
	return nil
}

// ProcessAt reads the process whose EPROCESS is at a kernel address. What could not be read
// comes back as problems.
func (g *Guest) ProcessAt(eprocess uint64) (Process, []Problem) {
	return g.process(g.as.newRecord(g.off.Process.Size), eprocess)
}

// isProcess distinguishes a process from the threads in the table of ids: its dispatcher
// header has type 3 (ProcessObject), and it has an id and a DTB.
func (g *Guest) isProcess(rec record, at uint64) bool {
	var kind [8]byte
	if g.as.Read(kind[:], at) != nil || kind[0]&0x7f != 3 {
		return false
	}
	if g.as.Read(rec.b, at) != nil {
		return false
	}
	return rec.ptr(g.off.Process.DTB) != 0 && rec.ptr(g.off.Process.PID)&3 == 0
}

// process reads one EPROCESS. rec is a buffer of its size.
func (g *Guest) process(rec record, at uint64) (p Process, problems []Problem) {
	o := &g.off.Process
	p = Process{EPROCESS: at, Session: -1, Flags: []string{}}
	if err := g.as.Read(rec.b, at); err != nil {
		p.Flags = append(p.Flags, FlagPartial)
		return p, []Problem{{What: fmt.Sprintf("process at %#x", at), Err: err}}
	}
	p.PID, p.PPID = rec.ptr(o.PID), rec.ptr(o.PPID)
	p.Name = rec.text8(o.Name)
	p.Created, p.Exited = rec.time(o.CreateTime), rec.time(o.ExitTime)
	p.ExitStatus, p.createTime = rec.u32(o.ExitStatus), rec.u64(o.CreateTime)
	p.DTB = rec.ptr(o.DTB) & g.as.f.root
	if o.UserDTB != winstruct.Missing {
		p.UserDTB = rec.ptr(o.UserDTB) & g.as.f.root
	}
	p.PEB = rec.ptr(o.PEB)
	p.Threads = rec.u32(o.ActiveThreads)
	p.SectionBase = rec.ptr(o.SectionBase)
	what := fmt.Sprintf("process %d (%s)", p.PID, p.Name)
	fail := func(doing string, err error) {
		problems = append(problems, Problem{What: what, Err: fmt.Errorf("read %s: %w", doing, err), Process: p.Identity()})
	}
	if !p.Exited.IsZero() {
		p.Flags = append(p.Flags, FlagExited)
	}
	if g.kernel.Inferred != "" {
		p.Flags = append(p.Flags, FlagInferred)
	}
	if o.Critical.Name != "" && rec.field(o.Critical) != 0 {
		p.Flags = append(p.Flags, FlagCritical)
	}
	if o.Protection != winstruct.Missing && rec.u8(o.Protection) != 0 {
		p.Flags = append(p.Flags, FlagProtected)
	}
	var err error
	if p.Session, err = g.session(rec, &p); err != nil {
		fail("session", err)
	}
	if p.Path, err = g.imagePath(rec); err != nil {
		fail("image path", err)
	}
	if p.Exited.IsZero() && p.PEB != 0 {
		if o.Wow64 != winstruct.Missing {
			p.PEB32, err = g.wow64PEB(rec)
			if err != nil {
				fail("wow64 record", err)
			}
			p.Wow64 = rec.ptr(o.Wow64) != 0
		}
		if p.CommandLine, err = g.commandLine(&p); err != nil {
			// Parameters are ordinary user memory; Windows pages them out.
			if !errors.Is(err, ErrNotPresent) {
				fail("command line", err)
			}
		}
	}
	if len(problems) > 0 {
		p.Flags = append(p.Flags, FlagPartial)
	}
	return p, problems
}

// imagePath returns the full path of the process's program, which the kernel keeps for
// audits, or "" if there is none.
func (g *Guest) imagePath(rec record) (string, error) {
	info := rec.ptr(g.off.Process.AuditName)
	if info == 0 {
		return "", nil
	}
	name, err := g.as.readRecord(info+uint64(g.off.AuditName), g.as.unicodeSize())
	if err != nil {
		return "", err
	}
	return name.unicode(g.as, 0)
}

// wow64PEB returns the address of the 32-bit PEB, or 0 for a 64-bit process. Until Windows
// 8 the EPROCESS refers to it; later it refers to a structure that does.
func (g *Guest) wow64PEB(rec record) (uint64, error) {
	at := rec.ptr(g.off.Process.Wow64)
	if at == 0 || g.off.Process.Wow64HasObject == winstruct.Missing || g.off.Ewow64PEB == winstruct.Missing {
		return at, nil
	}
	return g.as.word(at + uint64(g.off.Ewow64PEB))
}

func (g *Guest) commandLine(p *Process) (string, error) {
	as := g.space(p.DTB)
	params, err := as.word(p.PEB + uint64(g.off.PEB.Parameters))
	if err != nil || params == 0 {
		return "", err
	}
	line, err := as.readRecord(params+uint64(g.off.Params.CommandLine), as.unicodeSize())
	if err != nil {
		return "", err
	}
	return line.unicode(as, 0)
}
