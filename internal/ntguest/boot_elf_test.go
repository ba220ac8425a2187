package ntguest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

func TestWriteKernelELF(t *testing.T) {
	page := func(fill byte) []byte { return bytes.Repeat([]byte{fill}, pageSize) }
	runs := []PhysRun{
		{Addr: 0x900000, Data: page(9)},
		{Addr: 0x100000, Data: page(1)},
		{Addr: 0x102000, Data: page(2)}, // a gap that is filled
		{Addr: 0x200000, Data: nil},
	}
	var out bytes.Buffer
	if err := WriteKernelELF(&out, runs, 0x100050); err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	type load struct{ addr, size uint64 }
	var loads []load
	memory := make(map[uint64]byte)
	for _, p := range f.Progs {
		data, err := io.ReadAll(p.Open())
		if err != nil {
			t.Fatal(err)
		}
		switch p.Type {
		case elf.PT_NOTE:
			want := "\x04\x00\x00\x00\x08\x00\x00\x00\x12\x00\x00\x00Xen\x00\x50\x00\x10\x00\x00\x00\x00\x00"
			if string(data) != want {
				t.Errorf("note is %q, want %q", data, want)
			}
		case elf.PT_LOAD:
			loads = append(loads, load{p.Paddr, p.Filesz})
			for i := uint64(0); i < p.Filesz; i += pageSize {
				memory[p.Paddr+i] = data[i]
			}
		}
	}
	if want := []load{{0x100000, 0x3000}, {0x900000, 0x1000}}; len(loads) != 2 || loads[0] != want[0] || loads[1] != want[1] {
		t.Errorf("segments %x, want %x", loads, want)
	}
	for addr, want := range map[uint64]byte{0x100000: 1, 0x101000: 0, 0x102000: 2, 0x900000: 9} {
		if memory[addr] != want {
			t.Errorf("byte at %#x is %d, want %d", addr, memory[addr], want)
		}
	}
}

func TestWriteKernelELFRefuses(t *testing.T) {
	for _, c := range []struct {
		name, want string
		runs       []PhysRun
	}{
		{"nothing", "no memory to load", nil},
		{"low memory", "first MiB", []PhysRun{{Addr: 0x8000, Data: make([]byte, 1)}}},
		{"overlap", "overlaps", []PhysRun{{Addr: 0x100000, Data: make([]byte, 8)}, {Addr: 0x100004, Data: make([]byte, 8)}}},
		{"wrap", "first MiB", []PhysRun{{Addr: ^uint64(0) - 1, Data: make([]byte, 8)}}},
	} {
		if err := WriteKernelELF(io.Discard, c.runs, 0); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one about %q", c.name, err, c.want)
		}
	}
}

func TestLoadRuntimeRefuses(t *testing.T) {
	good := RuntimeHeader{Magic: runtimeMagic, TextSize: 0x1000, DataOffset: 0x1000, ImageSize: 0x1000, MemorySize: 0x2000, Patches: 0x200, PatchCount: 1}
	encode := func(change func(*RuntimeHeader)) []byte {
		h := good
		change(&h)
		var b bytes.Buffer
		binary.Write(&b, binary.LittleEndian, h)
		return append(b.Bytes(), make([]byte, 0x1000-b.Len())...)
	}
	if _, err := LoadRuntime(encode(func(*RuntimeHeader) {})); err != nil {
		t.Fatalf("a sound file: %v", err)
	}
	for name, change := range map[string]func(*RuntimeHeader){
		"magic":   func(h *RuntimeHeader) { h.Magic++ },
		"memory":  func(h *RuntimeHeader) { h.MemorySize = 0x800 },
		"huge":    func(h *RuntimeHeader) { h.MemorySize = 1 << 31 },
		"data":    func(h *RuntimeHeader) { h.DataOffset = 0x10000 },
		"shadow":  func(h *RuntimeHeader) { h.KVASEnd = 0x5000 },
		"patches": func(h *RuntimeHeader) { h.PatchCount = 1 << 29 },
	} {
		if r, err := LoadRuntime(encode(change)); err == nil || r != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := LoadRuntime([]byte("short")); err == nil {
		t.Error("a short file: accepted")
	}
	r, err := LoadRuntime(encode(func(*RuntimeHeader) {}))
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(r.Image[0x200:], 0x1000) // the patch lies in the data
	if err := r.PatchShadow(1, 2, 3); err == nil {
		t.Error("a patch outside of the code: accepted")
	}
}

func TestDomainXML(t *testing.T) {
	text, err := Domain{Name: "a<b", Kernel: "/k.elf", ConsoleLog: "/log", ConsoleSocket: "/sock", Type: "kvm", Machine: "pc", MemoryMiB: 1024}.XML()
	if err != nil {
		t.Fatal(err)
	}
	var back domainXML
	if err := xml.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back.Name != "a<b" || back.Type != "kvm" || back.OS.Kernel != "/k.elf" || back.OS.Type.Machine != "pc" || back.Memory.Value != 1024 ||
		back.VCPU != 2 || back.Devices.Serial.Source.Path != "/sock" || back.Devices.Serial.Log.File != "/log" {
		t.Errorf("read back %+v from\n%s", back, text)
	}
	if _, err := (Domain{Name: "x"}).XML(); err == nil {
		t.Error("a domain without a kernel: accepted")
	}
}
