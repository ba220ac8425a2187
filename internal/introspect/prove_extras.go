package introspect

import (
	"encoding/binary"
	"errors"
	"strings"

	"vmav.dev/vmav/internal/winstruct"
)

// proveExtras holds what reading can do without against the guest, and forgets what is
// not borne out.
func (p *prover) proveExtras() {
	g, o := p.g, &p.g.off.Process
	var shadow, session, wow64, critical, ordinary, protection, ldr32 tally
	vital := map[string]bool{"csrss.exe": true, "smss.exe": true, "wininit.exe": true}
	for i := range p.samples {
		s := &p.samples[i]
		if !s.live {
			continue
		}
		if o.Critical.Name != "" {
			if on := s.rec.field(o.Critical) != 0; vital[strings.ToLower(s.name)] {
				critical.add(on)
			} else if strings.EqualFold(s.name, "explorer.exe") || strings.EqualFold(s.name, "svchost.exe") {
				ordinary.add(!on)
			}
		}
		if o.Protection != winstruct.Missing {
			// _PS_PROTECTION: three bits of type, one of audit, four of signer.
			if level := s.rec.u8(o.Protection); level&7 > 2 || level>>4 > 8 {
				protection.bad++
			} else if level != 0 {
				protection.good++
			}
		}
		if s.peb == 0 {
			continue
		}
		if o.UserDTB != winstruct.Missing {
			if dtb := s.rec.ptr(o.UserDTB) & g.as.f.root; dtb != 0 {
				user := newSpace(g.t, g.as.f, dtb)
				a, aerr := s.as.Translate(s.peb)
				b, berr := user.Translate(s.peb)
				shadow.add(aerr == nil && berr == nil && a == b)
			}
		}
		if o.Session != winstruct.Missing && g.off.SessionID != winstruct.Missing {
			if at := s.rec.ptr(o.Session); at != 0 {
				var a, b [4]byte
				aerr, berr := s.as.Read(a[:], at+uint64(g.off.SessionID)), s.as.Read(b[:], s.peb+uint64(g.off.PEB.SessionID))
				if !errors.Is(berr, ErrNotPresent) {
					session.add(aerr == nil && berr == nil && a == b)
				}
			}
		}
		if o.Wow64 != winstruct.Missing && s.rec.ptr(o.Wow64) != 0 {
			peb32, err := g.wow64PEB(s.rec)
			var base [4]byte
			// PEB.ImageBaseAddress of the 32-bit form has been at 8 since NT 3.1.
			ok := err == nil && peb32 != 0 && peb32>>32 == 0 && peb32%pageSize == 0 && s.as.Read(base[:], peb32+8) == nil &&
				uint64(binary.LittleEndian.Uint32(base[:])) == s.base
			wow64.add(ok)
			if ok && g.off.PEB32.Ldr != winstruct.Missing {
				found := make(map[uint64]*Module)
				wow64 := g.wow64(s.as)
				err := wow64.lists(p.ctx, peb32, found)
				ldr32.add(err == nil && found[s.base] != nil)
			}
		}
	}
	if o.UserDTB != winstruct.Missing {
		p.optional("_KPROCESS.UserDirectoryTableBase", shadow, 2, func() { o.UserDTB = winstruct.Missing })
	}
	if o.Session != winstruct.Missing {
		p.optional("_EPROCESS.Session", session, 2, func() { o.Session, g.off.SessionID = winstruct.Missing, winstruct.Missing })
	}
	if o.Wow64 != winstruct.Missing {
		p.optional("_EPROCESS.WoW64Process", wow64, 1, func() { o.Wow64, g.off.Ewow64PEB = winstruct.Missing, winstruct.Missing })
		if g.off.PEB32.Ldr != winstruct.Missing {
			p.optional("_PEB32.Ldr", ldr32, 1, func() { g.off.PEB32.Ldr = winstruct.Missing })
		}
	}
	if o.Critical.Name != "" {
		if !ordinary.proven(1) {
			critical.bad++
		}
		p.optional("_EPROCESS.BreakOnTermination", critical, 2, func() { o.Critical = winstruct.Field{} })
	}
	if o.Protection != winstruct.Missing {
		p.optional("_EPROCESS.Protection", protection, 1, func() { o.Protection = winstruct.Missing })
	}
}

const (
	maxCIDPages      = 1 << 13 // pages of the kernel's data that are searched
	maxCIDCandidates = 1 << 16 // words in them that are followed
)

// proveCID finds PspCidTable, which is not exported: the variable of the kernel that
// refers to a handle table in which every process of the list has its entry at its id.
func (p *prover) proveCID() error {
	g := p.g
	if g.off.HandleTableCode == winstruct.Missing || g.off.HandleEntrySize != 2*g.as.ptr {
		p.unproven = append(p.unproven, "PspCidTable")
		return nil
	}
	seen := make(map[uint64]bool)
	page := g.as.newRecord(pageSize)
	pages := 0
	for _, r := range p.writable() {
		for rva := r[0] &^ (pageSize - 1); rva < r[1]; rva += pageSize {
			if err := p.ctx.Err(); err != nil {
				return err
			}
			if pages++; pages > maxCIDPages || len(seen) > maxCIDCandidates {
				break
			}
			if g.as.Read(page.b, g.kernel.Base+rva) != nil {
				continue
			}
			for off := uint32(0); off < pageSize; off += page.word {
				at := page.ptr(off)
				if !g.as.f.kernelObject(at) || at-g.kernel.Base < uint64(g.kernel.Size) || seen[at] {
					continue
				}
				seen[at] = true
				if p.isCIDTable(at) {
					g.off.Sym.CidTable = rva + uint64(off)
					return nil
				}
			}
		}
	}
	p.unproven = append(p.unproven, "PspCidTable")
	return nil
}

// writable are the ranges of the kernel image that its section headers call writable.
func (p *prover) writable() (out [][2]uint64) {
	g := p.g
	var head [pageSize]byte
	if g.as.Read(head[:], g.kernel.Base) != nil {
		return nil
	}
	le := binary.LittleEndian
	pe := uint64(le.Uint32(head[0x3c:]))
	if pe > pageSize-0x108-8 {
		return nil
	}
	table := pe + 24 + uint64(le.Uint16(head[pe+20:]))
	for i := range uint64(min(le.Uint16(head[pe+6:]), 96)) {
		at := table + 40*i
		if at+40 > pageSize {
			break
		}
		size, rva, flags := uint64(le.Uint32(head[at+8:])), uint64(le.Uint32(head[at+12:])), le.Uint32(head[at+36:])
		if flags>>31 != 0 && rva+size <= uint64(g.kernel.Size) { // IMAGE_SCN_MEM_WRITE
			out = append(out, [2]uint64{rva, rva + size})
		}
	}
	return out
}

// isCIDTable tells whether the handle table at an address is that of ids: System is at
// 4, every other process at its own.
func (p *prover) isCIDTable(at uint64) bool {
	code, err := p.g.as.word(at + uint64(p.g.off.HandleTableCode))
	if err != nil || code&3 > 2 || !p.kernelPointer(code&^3) || code&^3%pageSize != 0 {
		return false
	}
	var t tally
	for i := range p.samples {
		s := &p.samples[i]
		t.add(p.idEntry(code, s.pid) == s.at)
		if t.bad > 3 {
			return false
		}
	}
	return t.proven(3)
}

// idEntry is the object at an id of a table of ids; 0 for none.
func (p *prover) idEntry(code, pid uint64) uint64 {
	width := uint64(p.g.as.ptr)
	entries, pointers := pageSize/(2*width), pageSize/width
	index := pid / 4
	table := code &^ 3
	for level := code & 3; level > 0; level-- {
		span := entries
		for range level - 1 {
			span *= pointers
		}
		if index/span >= pointers {
			return 0
		}
		next, err := p.g.as.word(table + index/span*width)
		if err != nil || !p.kernelPointer(next) {
			return 0
		}
		table, index = next, index%span
	}
	if index >= entries {
		return 0
	}
	word, err := p.g.as.word(table + index*2*width)
	if err != nil {
		return 0
	}
	return p.g.handleObject(word)
}
