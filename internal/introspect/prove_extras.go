package introspect

import (
	"encoding/binary"
	"strings"

	"vmav.dev/vmav/internal/winstruct"
)

// proveExtras checks the offsets that reading can do without, and drops those that are not
// proven.
func (p *prover) proveExtras() {
	g, o := p.g, &p.g.off.Process
	var session sessionProof
	var shadow, wow64, critical, ordinary, protection, ldr32 tally
	opaque := g.off.SessionID == winstruct.Missing
	if opaque {
		g.off.SessionID = opaqueSessionID
	}
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
		if o.Session != winstruct.Missing {
			session.add(g, s.as, s.rec, s.peb)
		}
		if o.Wow64 != winstruct.Missing && s.rec.ptr(o.Wow64) != 0 {
			peb32, err := g.wow64PEB(s.rec)
			var base [4]byte
			// ImageBaseAddress of the 32-bit PEB has been at 8 since NT 3.1.
			ok := err == nil && peb32 != 0 && peb32>>32 == 0 && peb32%pageSize == 0 && s.as.Read(base[:], peb32+8) == nil &&
				uint64(binary.LittleEndian.Uint32(base[:])) == s.base
			wow64.add(ok)
			if ok && g.off.PEB32.Ldr != winstruct.Missing {
				found := make(map[uint64]*Module)
				wow64 := g.wow64Loader(s.as)
				err := wow64.addModules(p.ctx, peb32, found)
				ldr32.add(err == nil && found[s.base] != nil)
			}
		}
	}
	if o.UserDTB != winstruct.Missing {
		p.optional("_KPROCESS.UserDirectoryTableBase", shadow, 2, func() { o.UserDTB = winstruct.Missing })
	}
	if o.Session != winstruct.Missing {
		if opaque && !session.other {
			session.bad += session.good + 1
		}
		p.optional("_EPROCESS.Session", session.tally, 2, func() {
			o.Session, g.off.SessionID, g.off.PEB.SessionID = winstruct.Missing, winstruct.Missing, winstruct.Missing
		})
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
	maxCIDPages      = 1 << 13 // pages of the kernel's data to search
	maxCIDCandidates = 1 << 16 // words in them to follow
)

// handleBits57 is where an object's address begins in a handle table entry of the kernel for
// 57-bit addresses, a file of its own with the same structures otherwise (System Informer,
// kphdyn.xml). Layouts are of the other kernel.
const handleBits57 = 11

// proveCID finds PspCidTable, which is not exported: it is the variable of the kernel that
// refers to a handle table in which each process of the list has its entry at its id.
func (p *prover) proveCID() error {
	rva, err := p.findCIDTable()
	if err != nil {
		return err
	}
	if off := p.g.off; rva == 0 && p.g.as.f == formatLA57 && off.HandleBits.BitCount != 0 {
		layout := off.HandleBits
		off.HandleBits.BitOffset, off.HandleBits.BitCount = handleBits57, 64-handleBits57
		if rva, err = p.findCIDTable(); err != nil {
			return err
		}
		if rva == 0 {
			off.HandleBits = layout
		}
	}
	if p.g.off.Sym.CidTable = rva; rva == 0 {
		p.unproven = append(p.unproven, "PspCidTable")
	}
	return nil
}

// findCIDTable returns the RVA of PspCidTable, or 0 if it is not found. Only the end of the
// prover's context is an error.
func (p *prover) findCIDTable() (uint64, error) {
	g := p.g
	header, err := readPEHeader(g.as, g.kernel.Base)
	if err != nil || g.off.HandleTableCode == winstruct.Missing || g.off.HandleEntrySize != 2*g.as.ptr {
		return 0, nil
	}
	seen := make(map[uint64]bool)
	page := g.as.newRecord(pageSize)
	pages := 0
	for _, s := range header.sections() {
		if !s.writable() || s.end() > uint64(g.kernel.Size) {
			continue
		}
		for rva := s.rva &^ (pageSize - 1); rva < s.end(); rva += pageSize {
			if err := p.ctx.Err(); err != nil {
				return 0, err
			}
			if pages++; pages > maxCIDPages || len(seen) > maxCIDCandidates {
				return 0, nil
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
					return rva + uint64(off), nil
				}
			}
		}
	}
	return 0, nil
}

// isCIDTable reports whether the handle table at an address is that of process and thread
// ids: the entry of every process's id refers to that process.
func (p *prover) isCIDTable(at uint64) bool {
	table, err := p.g.handleTableAt(at)
	if err != nil || !p.kernelPointer(table.top) || table.top%pageSize != 0 {
		return false
	}
	var t tally
	for i := range p.samples {
		s := &p.samples[i]
		t.add(p.objectOfID(table, s.pid) == s.at)
		if t.bad > 3 {
			return false
		}
	}
	return t.proven(3)
}

// objectOfID returns the object at an id in a table of ids, or 0.
func (p *prover) objectOfID(table handleTable, id uint64) uint64 {
	entry, err := table.entry(id)
	if err != nil || entry == 0 {
		return 0
	}
	word, err := p.g.as.word(entry)
	if err != nil {
		return 0
	}
	return p.g.entryObject(word)
}
