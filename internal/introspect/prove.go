package introspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"vmav.dev/vmav/internal/winstruct"
)

// prover checks the offsets of a near build against the guest's memory.
type prover struct {
	ctx        context.Context
	g          *Guest
	system     uint64 // EPROCESS of System, from the kernel's export
	systemRead bool   // System was read with these offsets
	now        uint64 // FILETIME of the guest
	samples    []sample
	unproven   []string
}

// sample is a process whose structures are checked against the offsets.
type sample struct {
	at    uint64
	rec   record
	pid   uint64
	name  string
	live  bool
	as    *AddressSpace
	peb   uint64
	base  uint64 // address of its program
	image *VAD   // range in which the program is mapped
	vads  []VAD
}

const (
	maxSamples = 96 // processes that are checked
	maxThreads = 1 << 14
	deepProofs = 12 // processes whose address space and loader lists are checked, too
)

// tally counts the observations for and against an offset.
type tally struct{ good, bad int }

func (t *tally) add(ok bool) {
	if ok {
		t.good++
	} else {
		t.bad++
	}
}

// proven reports whether there are enough observations for the offset and few against it. A
// few may contradict: a process that is being created or torn down can be inconsistent.
func (t tally) proven(atLeast int) bool { return t.good >= atLeast && t.bad*10 <= t.good }

// required returns an error if an indispensable offset is not proven.
func (t tally) required(what string, atLeast int) error {
	if t.proven(atLeast) {
		return nil
	}
	return fmt.Errorf("%s is not proven: %d processes bear it out, %d contradict", what, t.good, t.bad)
}

// optional drops an offset that is not proven and that reading can do without.
func (p *prover) optional(what string, t tally, atLeast int, forget func()) {
	if !t.proven(atLeast) {
		forget()
		p.unproven = append(p.unproven, what)
	}
}

// prove runs all proofs. The error is the first that failed for an indispensable offset.
func (p *prover) prove() error {
	for _, step := range []func() error{p.proveTables, p.proveRing, p.proveProcess, p.provePEB, p.proveVADs, p.proveLoader, p.proveDrivers} {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	p.proveExtras()
	p.forgetFiles()
	p.forgetKills()
	return p.proveCID()
}

// kernelPointer reports whether v can be a pointer to something in the kernel.
func (p *prover) kernelPointer(v uint64) bool {
	return p.g.as.f.kernelImage(v) && v%uint64(p.g.as.ptr) == 0
}

// proveTables switches to the page tables of the System process. They must map the kernel
// where it is, and System itself.
func (p *prover) proveTables() error {
	o := &p.g.off.Process
	if !p.g.as.f.kernelObject(p.system) {
		return fmt.Errorf("PsInitialSystemProcess is %#x, no object", p.system)
	}
	rec, err := p.g.as.readRecord(p.system, o.Size)
	if err != nil {
		return fmt.Errorf("read System at %#x: %w", p.system, err)
	}
	if pid, name := rec.ptr(o.PID), rec.text8(o.Name); pid != 4 || name != "System" || rec.ptr(o.PPID) != 0 {
		return fmt.Errorf("at %#x is pid %d %q, not System", p.system, pid, name)
	}
	as := newSpace(p.g.t, p.g.as.f, rec.ptr(o.DTB))
	// A variable that is not exported says whether the build inverts frame numbers.
	as.soft.unknown = p.g.off.InvalidPteMask != winstruct.Missing
	as.soft.opaque = p.g.as.soft.opaque
	for _, va := range []uint64{p.g.kernel.Base, p.system} {
		a, err := p.g.as.Translate(va)
		if err != nil {
			return err
		}
		if b, err := as.Translate(va); err != nil || a != b {
			return fmt.Errorf("_KPROCESS.DirectoryTableBase of System, %#x, does not map the kernel", as.dtb)
		}
	}
	p.g.as, p.systemRead = as, true
	var b [8]byte
	if err := as.Read(b[:], as.f.kuser+0x14); err != nil { // KUSER_SHARED_DATA.SystemTime
		return fmt.Errorf("read the guest's time: %w", err)
	}
	p.now = binary.LittleEndian.Uint64(b[:])
	return nil
}

// proveRing follows the process list from System back to System. The neighbour of each
// entry must point back, one entry must be the list's head in the kernel image, and the
// others are processes.
func (p *prover) proveRing() error {
	g, o := p.g, &p.g.off.Process
	first := p.system + uint64(o.Links)
	var head uint64
	seen := make(map[uint64]struct{})
	for at := first; ; {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		if _, again := seen[at]; again || len(seen) >= maxProcesses {
			return fmt.Errorf("_EPROCESS.ActiveProcessLinks: %w", errList)
		}
		seen[at] = struct{}{}
		if in := at - g.kernel.Base; in < uint64(g.kernel.Size) {
			if head != 0 {
				return errors.New("_EPROCESS.ActiveProcessLinks: two heads of the list")
			}
			head = at
		} else if len(p.samples) < maxSamples {
			s := sample{at: at - uint64(o.Links), rec: g.as.newRecord(o.Size)}
			if err := g.as.Read(s.rec.b, s.at); err != nil {
				return fmt.Errorf("_EPROCESS.ActiveProcessLinks: read process at %#x: %w", s.at, err)
			}
			p.samples = append(p.samples, s)
		}
		next, err := g.as.word(at)
		if err != nil {
			return fmt.Errorf("_EPROCESS.ActiveProcessLinks: %w", err)
		}
		if back, err := g.as.word(next + uint64(g.as.ptr)); err != nil || back != at {
			return fmt.Errorf("_EPROCESS.ActiveProcessLinks: the neighbour of %#x does not point back", at)
		}
		if at = next; at == first {
			break
		}
	}
	if head == 0 {
		return errors.New("_EPROCESS.ActiveProcessLinks: no head of the list in the kernel image")
	}
	if len(p.samples) < 3 {
		return fmt.Errorf("%d processes are too few to prove anything with", len(p.samples))
	}
	g.off.Sym.ActiveProcessHead = head - g.kernel.Base
	return nil
}

// proveProcess checks the plain fields of EPROCESS for plausible values.
func (p *prover) proveProcess() error {
	g, o := p.g, &p.g.off.Process
	pids := make(map[uint64]int)
	for i := range p.samples {
		s := &p.samples[i]
		s.pid, s.name = s.rec.ptr(o.PID), s.rec.text8(o.Name)
		pids[s.pid]++
	}
	const start = 125911584000000000 // FILETIME of the year 2000
	day := uint64(24 * 3600 * 10_000_000)
	born := p.samples[0].rec.u64(o.CreateTime)
	var pid, ppid, name, table, created, exited, status, threads tally
	var gone tally // observations for ExitTime in processes that have exited
	for i := range p.samples {
		s := &p.samples[i]
		pid.add(s.pid&3 == 0 && s.pid != 0 && s.pid < 1<<32 && pids[s.pid] == 1)
		parent := s.rec.ptr(o.PPID)
		if s.pid != 4 && pids[parent] == 1 {
			ppid.good++
		} else if parent&3 != 0 || parent >= 1<<32 {
			ppid.bad++
		}
		name.add(printable(s.rec, o.Name))
		c, e := s.rec.u64(o.CreateTime), s.rec.u64(o.ExitTime)
		created.add(c >= start && c+day >= born && c <= p.now+day)
		// A process that has exited has no thread left.
		n := -1
		if o.ThreadList != winstruct.Missing {
			n = p.length(s.at + uint64(o.ThreadList))
		}
		threads.add(n >= 0 && n == int(s.rec.u32(o.ActiveThreads)))
		s.live = n > 0
		if !s.live {
			gone.add(e >= c && e <= p.now+day)
			continue
		}
		exited.add(e == 0)
		status.add(s.rec.u32(o.ExitStatus) == 0x103) // STATUS_PENDING
		s.as = g.space(s.rec.ptr(o.DTB))
		a, aerr := g.as.Translate(p.system)
		b, berr := s.as.Translate(p.system)
		table.add(aerr == nil && berr == nil && a == b)
	}
	if !gone.proven(1) {
		exited = tally{} // any field that is always zero would look the same
	}
	p.optional("_EPROCESS.ExitTime", exited, 3, func() { o.ExitTime = winstruct.Missing })
	return errors.Join(pid.required("_EPROCESS.UniqueProcessId", 3), ppid.required("_EPROCESS.InheritedFromUniqueProcessId", 2),
		name.required("_EPROCESS.ImageFileName", 3), table.required("_KPROCESS.DirectoryTableBase", 3), created.required("_EPROCESS.CreateTime", 3),
		status.required("_EPROCESS.ExitStatus", 3), threads.required("_EPROCESS.ActiveThreads", 3))
}

// length returns the number of entries of a list, or -1 if it does not close.
func (p *prover) length(head uint64) int {
	n := 0
	if p.g.as.walkList(p.ctx, head, 0, maxThreads, func(uint64) bool { n++; return true }) != nil {
		return -1
	}
	return n
}

// printable reports whether a field holds a name: printable characters up to a zero.
func printable(rec record, f winstruct.Field) bool {
	text := rec.text8(f)
	if text == "" || len(text) >= int(f.Size) {
		return false
	}
	for i := range len(text) {
		if text[i] < ' ' || text[i] == 0x7f {
			return false
		}
	}
	return true
}

// sameName reports whether a path ends in a process's name, of which EPROCESS keeps only
// the first bytes.
func sameName(path, name string) bool {
	base := path[strings.LastIndexAny(path, `\/`)+1:]
	if len(name) < 14 {
		return strings.EqualFold(base, name)
	}
	return len(base) >= len(name) && strings.EqualFold(base[:len(name)], name)
}

// stem returns a program's name in lower case and without its extension.
func stem(name string) string {
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	return name
}

// provePEB checks the process environment block against what the kernel records of the
// process.
func (p *prover) provePEB() error {
	g, o := p.g, &p.g.off.Process
	var peb, params, audit tally
	differ := false
	for i := range p.samples {
		s := &p.samples[i]
		if path, err := g.imagePath(s.rec); !errors.Is(err, ErrNotPresent) && (err != nil || path != "") {
			audit.add(err == nil && strings.HasPrefix(path, `\`) && sameName(path, s.name))
		}
		if !s.live {
			continue
		}
		at, base := s.rec.ptr(o.PEB), s.rec.ptr(o.SectionBase)
		if at == 0 && base == 0 {
			continue // a process of the kernel
		}
		if f := g.as.f; at == 0 || !f.user(at) || at%pageSize != 0 || base == 0 || !f.user(base) || base&0xffff != 0 {
			peb.bad++
			continue
		}
		image, err := s.as.word(at + uint64(g.off.PEB.ImageBase))
		if errors.Is(err, ErrNotPresent) {
			continue
		}
		peb.add(err == nil && image == base)
		if err != nil || image != base {
			continue
		}
		s.peb, s.base = at, base
		block, err := s.as.word(at + uint64(g.off.PEB.Parameters))
		if err != nil || block == 0 {
			continue
		}
		path, perr := p.unicodeAt(s.as, block+uint64(g.off.Params.ImagePath))
		line, lerr := p.unicodeAt(s.as, block+uint64(g.off.Params.CommandLine))
		if errors.Is(perr, ErrNotPresent) || errors.Is(lerr, ErrNotPresent) {
			continue
		}
		params.add(perr == nil && lerr == nil && sameName(path, s.name) && strings.Contains(strings.ToLower(line), stem(s.name)))
		differ = differ || line != path
	}
	if !differ {
		params.bad += params.good + 1 // the command line could be any other copy of the path
	}
	return errors.Join(peb.required("_EPROCESS.Peb with SectionBaseAddress", 2), params.required("_RTL_USER_PROCESS_PARAMETERS", 2),
		audit.required("_EPROCESS.SeAuditProcessCreationInfo", 2))
}

// unicodeAt reads a UNICODE_STRING whose lengths must be consistent.
func (p *prover) unicodeAt(as *AddressSpace, at uint64) (string, error) {
	rec, err := as.readRecord(at, as.unicodeSize())
	if err != nil {
		return "", err
	}
	if n, most := rec.u16(0), rec.u16(2); n&1 != 0 || n > most {
		return "", fmt.Errorf("a string of %d of %d bytes", n, most)
	}
	return rec.unicode(as, 0)
}
