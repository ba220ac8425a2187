package ntguest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"testing"
)

// digest is a hash over all of a machine's memory and its truth.
func digest(m *Machine) [32]byte {
	h := sha256.New()
	for _, pfn := range m.mem.used() {
		binary.Write(h, binary.LittleEndian, pfn)
		h.Write(m.mem.frame(pfn)[:])
	}
	h.Write(m.Truth.JSON())
	return [32]byte(h.Sum(nil))
}

func lay(t *testing.T, opts Options) *Machine {
	t.Helper()
	m, err := Lay(opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestLayDeterministic lays every build out twice, and once with another seed.
func TestLayDeterministic(t *testing.T) {
	builds, err := Builds()
	if err != nil {
		t.Fatal(err)
	}
	if len(builds) != 7 {
		t.Fatalf("%d builds, want 7", len(builds))
	}
	for _, b := range builds {
		first := digest(lay(t, Options{Build: b.Name, Seed: 11}))
		if second := digest(lay(t, Options{Build: b.Name, Seed: 11})); second != first {
			t.Errorf("%s: two layouts of one seed differ", b.Name)
		}
		if other := digest(lay(t, Options{Build: b.Name, Seed: 12})); other == first {
			t.Errorf("%s: layouts of two seeds are the same", b.Name)
		}
	}
}

// TestKernelDeterministic writes the bootable kernel twice.
func TestKernelDeterministic(t *testing.T) {
	var a, b bytes.Buffer
	for _, out := range []*bytes.Buffer{&a, &b} {
		if err := lay(t, Options{Build: "10.0.22000", Seed: 5, KVAShadow: true}).WriteKernel(out); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two kernels of one seed differ")
	}
}

// TestKernelRefuses asks for a kernel of what only an image of memory can be.
func TestKernelRefuses(t *testing.T) {
	for _, opts := range []Options{{Trim: 10}, {FileCache: true}, {Implants: true}, {Build: "10.0.19041-x86", MemoryMiB: 36 << 10}} {
		if opts.Build == "" {
			opts.Build = "10.0.19041"
		}
		if err := lay(t, opts).WriteKernel(io.Discard); err == nil {
			t.Errorf("%+v: no error", opts)
		}
	}
}

// TestTruth checks what every layout promises to hold.
func TestTruth(t *testing.T) {
	builds, err := Builds()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range builds {
		truth := lay(t, Options{Build: b.Name, Seed: 2}).Truth
		if len(truth.Processes) < 40 || truth.Processes[0].PID != 4 || truth.Processes[0].Name != "System" {
			t.Errorf("%s: %d processes, the first %q", b.Name, len(truth.Processes), truth.Processes[0].Name)
		}
		if truth.Kernel.GUID != b.Identity.GUID || truth.Kernel.Base>>44 != 0xfffff || len(truth.Drivers) == 0 {
			t.Errorf("%s: kernel %+v, %d drivers", b.Name, truth.Kernel, len(truth.Drivers))
		}
		var exited, wow64 int
		pids := make(map[uint64]bool)
		for _, p := range truth.Processes {
			if pids[p.PID] || p.PID%4 != 0 || p.DTB%pageSize != 0 || p.EPROCESS>>47 == 0 {
				t.Errorf("%s: process %+v", b.Name, p)
			}
			pids[p.PID] = true
			if p.Exited != nil {
				exited++
				continue
			}
			if p.Wow64 {
				wow64++
			}
			if p.PEB != 0 && (len(p.Modules) < 3 || len(p.VADs) < len(p.Modules)) {
				t.Errorf("%s: %s has %d modules, %d VADs", b.Name, p.Name, len(p.Modules), len(p.VADs))
			}
		}
		if exited == 0 || wow64 == 0 {
			t.Errorf("%s: %d exited and %d wow64 processes", b.Name, exited, wow64)
		}
	}
}

// TestReadPhys checks the ends of memory and what is between frames.
func TestReadPhys(t *testing.T) {
	m := lay(t, Options{Build: "6.1.7601", Seed: 1})
	p := bytes.Repeat([]byte{0xff}, 8)
	if err := m.ReadPhys(p, m.Memory-8); err != nil || !bytes.Equal(p, make([]byte, 8)) {
		t.Errorf("the end of memory: % x, %v", p, err)
	}
	for _, addr := range []uint64{m.Memory - 7, m.Memory, ^uint64(0) - 3} {
		if err := m.ReadPhys(p, addr); err == nil {
			t.Errorf("a read at %#x succeeds", addr)
		}
	}
	selfEntry := m.Truth.Kernel.DTB + 8*m.b.selfIndex
	if err := m.ReadPhys(p, selfEntry); err != nil || binary.LittleEndian.Uint64(p)&ptePFN != m.Truth.Kernel.DTB {
		t.Errorf("the self map entry at %#x: % x, %v", selfEntry, p, err)
	}
}

// TestLayRefuses tries options that cannot be.
func TestLayRefuses(t *testing.T) {
	for name, opts := range map[string]Options{
		"unknown build": {Build: "5.0.2195"},
		"shadow":        {Build: "6.1.7601", KVAShadow: true},
		"la57":          {Build: "6.1.7601", LA57: true},
		"memory":        {Build: "10.0.19041", MemoryMiB: 16},
		"hidden":        {Build: "10.0.19041", Hide: "nothing.exe"},
		"assets":        {Build: "10.0.19041", Assets: t.TempDir()},
	} {
		if m, err := Lay(opts); err == nil || m != nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestAbsent checks that what the truth calls absent has no valid PTE, that the rest
// of each image has one, and that pages that are lost have no frame.
func TestAbsent(t *testing.T) {
	for _, build := range []string{"6.1.7601", "10.0.22000"} {
		m := lay(t, Options{Build: build, Seed: 4, Absent: true})
		absent, lost := 0, 0
		for _, p := range m.b.procs {
			if p.user == nil {
				continue
			}
			for _, module := range m.b.processTruth(p).Modules {
				missing := make(map[uint64]bool)
				for _, rva := range module.Absent {
					missing[rva] = true
				}
				absent, lost = absent+len(module.Absent), lost+len(module.Lost)
				for rva := uint64(0); rva < module.Size; rva += pageSize {
					if _, present := p.space.frameAt(module.Base + rva); present == missing[rva] {
						t.Fatalf("%s: page %#x of %s in %s: present %v, absent in the truth %v", build, rva, module.Name, p.spec.name, present, missing[rva])
					}
				}
			}
		}
		if absent < 100 || lost == 0 || lost >= absent {
			t.Errorf("%s: %d pages are absent, %d of them lost", build, absent, lost)
		}
	}
}
