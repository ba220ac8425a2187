package winstruct

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// What vtypes reads of a structure and what compiled offsets read is the same, for
// every member of the structures that introspection walks.
func TestVtypesAndCompiledOffsetsAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, e := range BuiltIn().List() {
		switch e.Version {
		case "6.1.7601.24540", "10.0.19041.1237", "10.0.22000.978":
		default:
			continue
		}
		p, err := BuiltIn().Find(e.Identity)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"_EPROCESS", "_LDR_DATA_TABLE_ENTRY", "_MMVAD", "_MMVAD_SHORT", "_HANDLE_TABLE", "_PEB", "_CONTROL_AREA", "_FILE_OBJECT",
			"_OBJECT_HEADER"} {
			s, ok := p.Struct(name)
			if !ok {
				t.Fatalf("%s has no %s", e.Version, name)
			}
			mem := make([]byte, s.Size)
			for i := range mem {
				mem[i] = byte(rng.Uint32())
			}
			d, err := p.NewDumper(name)
			if err != nil {
				t.Fatalf("%s: %v", e.Version, err)
			}
			values, err := d.Dump(name, mem)
			if err != nil {
				t.Fatalf("%s: %v", e.Version, err)
			}
			if len(values) < 5 {
				t.Errorf("%s: %s has %d members", e.Version, name, len(values))
			}
			for _, v := range values {
				f, err := p.Field(name, v.Name)
				if err != nil {
					t.Errorf("%s: %v", e.Version, err)
					continue
				}
				if v.Bytes != nil {
					continue
				}
				padded := append(append([]byte(nil), mem...), make([]byte, 8)...)
				want := binary.LittleEndian.Uint64(padded[f.Offset:])
				if f.Size < 8 {
					want &= 1<<(8*f.Size) - 1
				}
				if want = f.Bits(want); v.Value != want {
					t.Errorf("%s: %s.%s: vtypes reads %#x, the offset %#x", e.Version, name, v.Name, v.Value, want)
				}
			}
		}
	}
}
