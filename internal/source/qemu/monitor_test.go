package qemu

import (
	"testing"
)

// Answers of QEMU 7.2's monitor, cut to what is parsed.
const mtree = `FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000cafff (prio 0, rom): pc.ram @00000000000c0000
  00000000000cb000-00000000000cdfff (prio 0, ram): pc.ram @00000000000cb000
  00000000000f0000-00000000000fffff (prio 0, rom): pc.ram @00000000000f0000
  0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-000000018fffffff (prio 0, ram): pc.ram @0000000080000000

`

func TestMemoryTree(t *testing.T) {
	got, err := parseMemoryTree(mtree)
	if err != nil {
		t.Fatal(err)
	}
	want := [][2]uint64{{0, 0xa0000}, {0xc0000, 0xe000}, {0xf0000, 0x80000000 - 0xf0000}, {0x100000000, 0x90000000}}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i, r := range got {
		if r.Start != want[i][0] || r.Size != want[i][1] {
			t.Errorf("range %d: %#x+%#x, want %#x+%#x", i, r.Start, r.Size, want[i][0], want[i][1])
		}
	}
}

const registers = `CPU#0
RAX=0000000000000001 RBX=fffff80000001000 RCX=0000000000000003 RDX=0000000000000004
RSI=0000000000000005 RDI=0000000000000006 RBP=0000000000000007 RSP=00000000000ff008
R8 =0000000000000008 R9 =0000000000000009 R10=000000000000000a R11=000000000000000b
R12=000000000000000c R13=000000000000000d R14=000000000000000e R15=000000000000000f
RIP=00007ff600001000 RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0
ES =002b 0000000000000000 ffffffff 00cff300 DPL=3 DS   [-WA]
CS =0033 0000000000000000 00000000 0020fb00 DPL=3 CS64 [-RA]
SS =002b 0000000000000000 ffffffff 00cff300 DPL=3 DS   [-WA]
GS =002b 0000000000220000 ffffffff 00cff300 DPL=3 DS   [-WA]
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 ffffb00000003000 00000067 00008900 DPL=0 TSS64-avl
GDT=     ffffb00000001000 0000006f
IDT=     ffffb00000002000 00000fff
CR0=80050033 CR2=0000000000000000 CR3=00000000001ad000 CR4=000006f8
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
CCS=0000000000000044 CCD=0000000000000000 CCO=EFLAGS
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
CPU#1
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00000663
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1
CS =f000 ffff0000 0000ffff 00009b00
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
`

func TestRegisters(t *testing.T) {
	got, err := parseRegisters(registers)
	if err != nil || len(got) != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
	r := got[0]
	if r.CR0 != 0x80050033 || r.CR3 != 0x1ad000 || r.CR4 != 0x6f8 || r.EFER != 0xd01 || r.CPL != 3 || r.RIP != 0x7ff600001000 || r.RSP != 0xff008 ||
		r.GS.Base != 0x220000 || r.CS.Selector != 0x33 || r.IDTBase != 0xffffb00000002000 || r.IDTLimit != 0xfff || r.GDTBase != 0xffffb00000001000 ||
		r.RFLAGS != 0x246 {
		t.Errorf("vCPU 0: %+v", r)
	}
	for i, want := range []uint64{1, 3, 4, 0xfffff80000001000, 0xff008, 7, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		if r.GPR[i] != want {
			t.Errorf("general register %d is %#x, want %#x", i, r.GPR[i], want)
		}
	}
	if r := got[1]; r.CPU != 1 || !r.Halted || r.CR0 != 0x60000010 || r.RIP != 0xfff0 || r.GPR[2] != 0x663 || r.CS.Base != 0xffff0000 {
		t.Errorf("vCPU 1: %+v", r)
	}
}

func FuzzMonitor(f *testing.F) {
	f.Add(mtree)
	f.Add(registers)
	f.Add("Host virtual address for 0x100000 (pc.ram) is 0x7f4523f00000\n")
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := parseMemoryTree(text); (err == nil) != (len(got) > 0) {
			t.Fatalf("parseMemoryTree = %v, %v", got, err)
		}
		if got, err := parseRegisters(text); (err == nil) != (len(got) > 0) {
			t.Fatalf("parseRegisters = %v, %v", got, err)
		}
		if got, err := parseHostAddress(text); err != nil && got != 0 {
			t.Fatalf("parseHostAddress = %v, %v", got, err)
		}
	})
}
