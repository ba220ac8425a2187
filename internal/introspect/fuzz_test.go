package introspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/sourcetest"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// patched is a guest's memory with words changed: what a hostile guest can do. data says
// which of the places become what, at most limit of them: a value from data, or what other
// makes of another place.
func (s *machine) patched(data []byte, places []uint64, limit int, other func(place uint64) uint64) *sourcetest.Guest {
	p := sourcetest.New(s.m, s.m.Memory)
	for ; len(data) >= 10 && limit > 0; limit-- {
		at := places[int(binary.LittleEndian.Uint16(data))*31%len(places)]
		v := binary.LittleEndian.Uint64(data[2:])
		if v&3 == 1 {
			v = other(places[int(v>>2%uint64(len(places)))%len(places)])
		}
		p.Put(at, v, 8)
		data = data[10:]
	}
	return p
}

// address makes of a place its address.
func address(place uint64) uint64 { return place }

// hostile is a sound guest and where in its memory structures lie that an enumeration
// reads.
type hostile struct {
	*machine
	places []uint64
}

func newHostile(t testing.TB, o ntguest.Options) hostile {
	o.Seed, o.MemoryMiB = 1, 256
	s := lay(t, o)
	g := open(t, s)
	var places []uint64
	add := func(as *AddressSpace, va uint64, size uint64) {
		for off := uint64(0); off < size; off += 8 {
			if pa, err := as.Translate(va + off); err == nil {
				places = append(places, pa&^7)
			}
		}
	}
	procs, _, err := g.Processes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i := range procs {
		if i%7 != 0 && procs[i].Name != "malware.exe" {
			continue
		}
		add(g.as, procs[i].EPROCESS, uint64(g.off.Process.Size))
		token, _ := g.as.word(procs[i].EPROCESS + uint64(g.off.Process.Token))
		add(g.as, g.as.f.fastRef(token)+uint64(g.off.Token.Count), 0x40)
		handles, _ := g.as.word(procs[i].EPROCESS + uint64(g.off.Process.ObjectTable))
		add(g.as, handles, 0x40)
		if procs[i].PEB == 0 {
			continue
		}
		as := g.space(procs[i].DTB)
		add(as, procs[i].PEB, 0x80)
		ldr, _ := as.word(procs[i].PEB + uint64(g.off.PEB.Ldr))
		add(as, ldr, 0x400)
		root, _ := g.as.word(procs[i].EPROCESS + uint64(g.off.VAD.TreeRoot))
		add(g.as, root, 0x80)
		for off := uint64(0); off < pageSize; off += 8 {
			places = append(places, procs[i].DTB+off)
		}
	}
	table, _ := g.as.word(g.kernel.Base + g.off.Sym.CidTable)
	add(g.as, table, 0x40)
	add(g.as, g.kernel.Base+g.off.Sym.ActiveProcessHead, 16)
	add(g.as, g.kernel.Base+g.off.Sym.LoadedModuleList, 16)
	return hostile{s, places}
}

// FuzzHostileGuest changes words of a sound guest's structures (its process list,
// EPROCESSes, handle table, VADs, loader data and page tables) and enumerates all of it:
// everything ends, nothing panics, and what is returned is within bounds.
func FuzzHostileGuest(f *testing.F) {
	forms := []hostile{newHostile(f, ntguest.Options{Build: "10.0.19041"}), newHostile(f, ntguest.Options{Build: "10.0.19041", LA57: true}),
		newHostile(f, ntguest.Options{Build: "6.1.7601-x86"}), newHostile(f, ntguest.Options{Build: "10.0.19041-x86", ThreeGB: true})}
	seed := make([]byte, 20)
	binary.LittleEndian.PutUint16(seed, 3)
	for i := range forms {
		f.Add(seed, uint8(i))
		f.Add(bytes.Repeat([]byte{0xff}, 40), uint8(i))
	}
	f.Fuzz(func(t *testing.T, data []byte, form uint8) {
		h := forms[int(form)%len(forms)]
		p := h.patched(data, h.places, 32, address)
		g, err := Open(context.Background(), p, winstructtest.With{Store: winstruct.BuiltIn(), Profile: h.m.Profile()})
		if err != nil {
			return
		}
		procs, _, err := g.Processes(context.Background())
		if err != nil {
			return
		}
		if len(procs) > 2*maxProcesses {
			t.Fatalf("%d processes", len(procs))
		}
		for i := range procs {
			mods, _, err := g.Modules(context.Background(), &procs[i])
			if err == nil && len(mods) > 2*maxModules+maxVADs {
				t.Fatalf("%d modules", len(mods))
			}
			if i < 12 {
				inspectIdentity(t, g, &procs[i])
			}
		}
		if _, _, err := g.Drivers(context.Background()); err != nil && errors.Is(err, source.ErrClosed) {
			t.Fatal(err)
		}
	})
}

// inspectIdentity reads what kills rely on: an error gives no result, a result is whole.
func inspectIdentity(t *testing.T, g *Guest, p *Process) {
	if sid, err := g.UserSID(p); (err == nil) != (sid != "") || len(sid) > 200 {
		t.Fatalf("user %q with error %v", sid, err)
	}
	if id, _, err := g.Identify(p.EPROCESS); err == nil {
		guards, err := g.Guards(id)
		if (err == nil) != (guards != nil) {
			t.Fatalf("guards %+v with error %v", guards, err)
		}
		if guards != nil {
			if n := len(guards.All()); n > source.MaxGuards {
				t.Fatalf("%d guards", n)
			}
			for _, gd := range guards.All() {
				if gd.GPA%8 != 0 || gd.Mask == 0 || gd.Value&^gd.Mask != 0 {
					t.Fatalf("guard %+v", gd)
				}
			}
		}
	}
	for _, h := range []uint64{4, 0x3fc, 0x400, 0x3fffffc} {
		if object, still, err := g.HandleObject(p, h); err == nil && (object == 0 || still.Mask == 0) || err != nil && object != 0 {
			t.Fatalf("handle %#x: object %#x, %+v, %v", h, object, still, err)
		}
	}
	_, _ = g.ReadTEB(p, p.PEB+pageSize)
	var code [16]byte
	vads, _, _ := g.VADs(context.Background(), p)
	for i := range vads[:min(len(vads), 8)] {
		_ = g.ReadFile(code[:], &vads[i], vads[i].Start)
	}
}

// FuzzIdentifyKernel feeds memory that claims to be a kernel image.
func FuzzIdentifyKernel(f *testing.F) {
	f.Add([]byte("MZ"), []byte("RSDS"))
	f.Fuzz(func(t *testing.T, head, rest []byte) {
		// A flat identity map of 64 KiB in one page table.
		mem := make([]byte, 96<<10)
		copy(mem[0x4000:], head)
		copy(mem[0x5000:], rest)
		le := binary.LittleEndian
		le.PutUint64(mem[0x1000+256*8:], 0x2003)
		le.PutUint64(mem[0x2000:], 0x3003)
		le.PutUint64(mem[0x3000:], 0x16003)
		for i := range uint64(16) {
			le.PutUint64(mem[0x16000+8*i:], (0x4000+i<<12)|3)
		}
		as := newSpace(newTables(sourcetest.New(sourcetest.Bytes(mem), uint64(len(mem)))), formatX64, 0x1000)
		id, size, err := identifyKernel(as, 0xffff800000000000)
		if err == nil && (size > maxKernelSize || !kernelPDBs[id.PDB] || len(id.GUID) != 32) {
			t.Fatalf("%+v, %d", id, size)
		}
		parseRSDS(rest)
	})
}
