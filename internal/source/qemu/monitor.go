package qemu

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"vmav.dev/vmav/internal/source"
)

// region is a run of guest RAM as QEMU's monitor shows it.
type region struct {
	source.Range
	name string
}

// flatRange is a line of `info mtree -f`:
//
//	0000000000000000-000000000009ffff (prio 0, ram): pc.ram
var flatRange = regexp.MustCompile(`^\s*([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([a-z /-]+)\): (\S+)`)

const maxRegions = 4096

// parseMemoryTree finds guest RAM in the flat view of the address space "memory". Video
// memory and firmware count as RAM for QEMU; they are left out.
func parseMemoryTree(text string) ([]region, error) {
	var out []region
	inView, isMemory := false, false
	for _, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "FlatView"):
			if isMemory && len(out) > 0 {
				return merge(out)
			}
			inView, isMemory, out = true, false, nil
			continue
		case inView && strings.Contains(line, `AS "memory",`):
			isMemory = true
		}
		m := flatRange.FindStringSubmatch(line)
		if m == nil || !isMemory || m[3] != "ram" && m[3] != "rom" {
			continue
		}
		if notGuestRAM(m[4]) {
			continue
		}
		start, err1 := strconv.ParseUint(m[1], 16, 64)
		last, err2 := strconv.ParseUint(m[2], 16, 64)
		if err1 != nil || err2 != nil || last < start || start%source.PageSize != 0 || (last+1)%source.PageSize != 0 {
			continue
		}
		if len(out) >= maxRegions {
			return nil, fmt.Errorf("QEMU's memory tree has more than %d ranges", maxRegions)
		}
		out = append(out, region{source.Range{Start: start, Size: last + 1 - start}, m[4]})
	}
	if !isMemory || len(out) == 0 {
		return nil, errors.New("QEMU's memory tree shows no RAM")
	}
	return merge(out)
}

// notGuestRAM reports whether a memory region is something other than the guest's RAM:
// firmware, option ROMs, video memory, tables from the firmware, or memory shared with
// other guests. These names are QEMU's own. A user may give a memory backend any name, so
// only whole parts of a name count.
func notGuestRAM(name string) bool {
	switch name {
	case "pc.bios", "pc.rom", "isa-bios", "smram", "tseg":
		return true
	}
	for _, prefix := range []string{"vga.", "qxl.", "virtio-vga", "cirrus_vga.", "ati.", "bochs", "system.flash", "etc/", "/rom@", "ivshmem"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return strings.HasSuffix(name, ".rom") || strings.HasSuffix(name, ".vram") || strings.HasSuffix(name, ".bios")
}

// merge checks the order of ranges and joins neighbours of one block.
func merge(in []region) ([]region, error) {
	var out []region
	for _, r := range in {
		if n := len(out); n > 0 {
			last := &out[n-1]
			if r.Start < last.End() {
				return nil, fmt.Errorf("QEMU's memory tree has overlapping ranges at %#x", r.Start)
			}
			if r.Start == last.End() && r.name == last.name {
				last.Size += r.Size
				continue
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// hostAddress is the answer to `gpa2hva`: "Host virtual address for 0x0 (pc.ram) is
// 0x7f45…".
var hostAddress = regexp.MustCompile(`^Host virtual address for 0x[0-9a-f]+ \(.*\) is 0x([0-9a-f]+)`)

func parseHostAddress(text string) (uint64, error) {
	m := hostAddress.FindStringSubmatch(strings.TrimSpace(text))
	if m == nil {
		return 0, fmt.Errorf("QEMU's monitor says %q", strings.TrimSpace(text))
	}
	addr, err := strconv.ParseUint(m[1], 16, 64)
	if err != nil {
		return 0, fmt.Errorf("QEMU's monitor says %q: %w", strings.TrimSpace(text), err)
	}
	return addr, nil
}

var (
	cpuHeader  = regexp.MustCompile(`^CPU#(\d+)`)
	register   = regexp.MustCompile(`\b([A-Z][A-Z0-9]{1,3}) ?=\s*([0-9a-f]{4,16})\b`)
	segmentRow = regexp.MustCompile(`^(CS|SS|FS|GS) ?=([0-9a-f]{4}) ([0-9a-f]{8,16}) `)
	tableRow   = regexp.MustCompile(`^(GDT|IDT)=\s+([0-9a-f]{8,16}) ([0-9a-f]{8})`)
	cplField   = regexp.MustCompile(`\bCPL=([0-3])`)
	haltField  = regexp.MustCompile(`\bHLT=([01])`)
)

// gprs are the general registers in encoding order.
var gprs = []string{"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"}

// parseRegisters reads `info registers -a`. A vCPU in a 32-bit mode shows EAX for
// RAX; the monitor has no LSTAR.
func parseRegisters(text string) ([]source.Registers, error) {
	var out []source.Registers
	var cur *source.Registers
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, "\r")
		if m := cpuHeader.FindStringSubmatch(line); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil || len(out) > 4096 {
				return nil, fmt.Errorf("QEMU's monitor shows a vCPU %q", m[1])
			}
			out = append(out, source.Registers{CPU: n})
			cur = &out[len(out)-1]
			continue
		}
		if cur == nil {
			continue
		}
		if m := segmentRow.FindStringSubmatch(line); m != nil {
			sel, _ := strconv.ParseUint(m[2], 16, 16)
			base, _ := strconv.ParseUint(m[3], 16, 64)
			s := source.Segment{Selector: uint16(sel), Base: base}
			switch m[1] {
			case "CS":
				cur.CS = s
			case "SS":
				cur.SS = s
			case "FS":
				cur.FS = s
			case "GS":
				cur.GS = s
			}
			continue
		}
		if m := tableRow.FindStringSubmatch(line); m != nil {
			base, _ := strconv.ParseUint(m[2], 16, 64)
			limit, _ := strconv.ParseUint(m[3], 16, 32)
			if m[1] == "GDT" {
				cur.GDTBase = base
			} else {
				cur.IDTBase, cur.IDTLimit = base, uint32(limit)
			}
			continue
		}
		if m := cplField.FindStringSubmatch(line); m != nil {
			cur.CPL = m[1][0] - '0'
		}
		if m := haltField.FindStringSubmatch(line); m != nil {
			cur.Halted = m[1] == "1"
		}
		for _, m := range register.FindAllStringSubmatch(line, -1) {
			v, err := strconv.ParseUint(m[2], 16, 64)
			if err == nil {
				setRegister(cur, m[1], v)
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("QEMU's monitor shows no vCPU")
	}
	return out, nil
}

func setRegister(r *source.Registers, name string, v uint64) {
	if len(name) == 3 && name[0] == 'E' && name != "EFE" {
		name = "R" + name[1:] // EAX, EIP, EFL
	}
	switch name {
	case "RIP":
		r.RIP = v
	case "RFL":
		r.RFLAGS = v
	case "CR0":
		r.CR0 = v
	case "CR2":
		r.CR2 = v
	case "CR3":
		r.CR3 = v
	case "CR4":
		r.CR4 = v
	case "EFER":
		r.EFER = v
	}
	for i, g := range gprs {
		if g == name {
			r.GPR[i] = v
			if i == 4 {
				r.RSP = v
			}
		}
	}
}
