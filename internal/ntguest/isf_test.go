package ntguest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/winstruct"
)

// opaque are structures that Volatility 3 expects every kernel to have, and that what is
// compared does not read.
var opaque = []string{"_ERESOURCE", "_CM_KEY_BODY", "_CM_KEY_NODE", "_CM_KEY_VALUE", "_HMAP_ENTRY", "_KMUTANT", "_DEVICE_OBJECT",
	"_OBJECT_SYMBOLIC_LINK", "_POOL_TRACKER_BIG_PAGES", "_KTIMER", "_IMAGE_DOS_HEADER", "_MMVAD_SHORT", "_KSYSTEM_TIME"}

// writeISF writes a profile as a symbol file of Volatility 3 (its schema 6.2.0) to where it
// looks for one under dir.
func writeISF(t *testing.T, dir string, p *winstruct.Profile) {
	t.Helper()
	base := map[string]any{"pointer": map[string]any{"size": p.PointerSize(), "signed": false, "kind": "int", "endian": "little"}}
	number := func(name string, size uint32) {
		signed := !strings.HasPrefix(name, "unsigned") && name != "wchar"
		kind := "int"
		switch name {
		case "char", "unsigned char":
			kind = "char"
		case "void":
			kind = "void"
		case "float", "double":
			kind = "float"
		}
		base[name] = map[string]any{"size": size, "signed": signed, "kind": kind, "endian": "little"}
	}
	number("void", 0)
	for name, size := range map[string]uint32{"char": 1, "unsigned char": 1, "short": 2, "unsigned short": 2, "wchar": 2, "long": 4, "unsigned long": 4,
		"int": 4, "unsigned int": 4,
		"long long": 8, "unsigned long long": 8, "double": 8} {
		number(name, size)
	}
	types := make(map[string]any)
	named := func(name string) any {
		if _, ok := p.Struct(name); ok || types[name] != nil {
			return map[string]any{"kind": "struct", "name": name}
		}
		if name == "pointer" { // to something that the profile does not say
			return map[string]any{"kind": "pointer", "subtype": map[string]any{"kind": "base", "name": "void"}}
		}
		if _, ok := base[name]; !ok {
			name = "void"
		}
		return map[string]any{"kind": "base", "name": name}
	}
	// What Volatility asks for by the names that it had before 26100.
	if _, ok := p.Struct("_MM_SESSION_SPACE"); !ok {
		types["_MM_SESSION_SPACE"] = map[string]any{"kind": "struct", "size": 16,
			"fields": map[string]any{"SessionId": map[string]any{"offset": 8, "type": named("unsigned long")}}}
	}
	machine := 0x14c
	if p.Arch == winstruct.ArchX64 {
		machine = 0x8664
	}
	for _, name := range opaque {
		if _, ok := p.Struct(name); ok {
			continue
		}
		types[name] = map[string]any{"kind": "struct", "size": 8, "fields": map[string]any{}}
	}
	types["_SID_IDENTIFIER_AUTHORITY"] = map[string]any{"kind": "struct", "size": 6, "fields": map[string]any{"Value": map[string]any{"offset": 0,
		"type": map[string]any{"kind": "array", "count": 6, "subtype": named("unsigned char")}}}}
	types["_CMHIVE"] = map[string]any{"kind": "struct", "size": 8,
		"fields": map[string]any{"HiveList": map[string]any{"offset": 0, "type": named("_LIST_ENTRY")}}}
	for _, name := range p.Structs() {
		s, _ := p.Struct(name)
		fields := make(map[string]any)
		for _, f := range s.Fields {
			var typ any
			switch {
			case f.BitCount != 0:
				typ = map[string]any{"kind": "bitfield", "bit_position": f.BitOffset, "bit_length": f.BitCount, "type": named(f.Type)}
			case f.Type == "pointer":
				typ = map[string]any{"kind": "pointer", "subtype": named(f.Target)}
			case f.Type == "array":
				of, n := named(f.Target), f.Count
				if f.Target == "array" || of.(map[string]any)["name"] == "void" {
					of, n = named("unsigned char"), f.Size
				}
				typ = map[string]any{"kind": "array", "count": n, "subtype": of}
			case f.Name == "NtProductType":
				typ = map[string]any{"kind": "enum", "name": "_NT_PRODUCT_TYPE"}
			default:
				if typ = named(f.Type); typ.(map[string]any)["name"] == "void" {
					typ = map[string]any{"kind": "array", "count": f.Size, "subtype": named("unsigned char")}
				}
			}
			fields[f.Name] = map[string]any{"offset": f.Offset, "type": typ}
		}
		if f, err := p.Field(name, "CommitCharge"); err == nil && name == "_MMVAD_SHORT" {
			types["_MMVAD_FLAGS1"] = map[string]any{"kind": "struct", "size": 4,
				"fields": map[string]any{"CommitCharge": map[string]any{"offset": 0, "type": named("unsigned long")}}}
			types["__u1"] = map[string]any{"kind": "union", "size": 4,
				"fields": map[string]any{"VadFlags1": map[string]any{"offset": 0, "type": map[string]any{"kind": "struct", "name": "_MMVAD_FLAGS1"}}}}
			fields["u1"] = map[string]any{"offset": f.Offset, "type": map[string]any{"kind": "union", "name": "__u1"}}
		}
		types[name] = map[string]any{"kind": "struct", "size": s.Size, "fields": fields}
	}
	symbols := make(map[string]any)
	for _, name := range p.Symbols() {
		rva, _ := p.Symbol(name)
		symbols[name] = map[string]any{"address": rva}
	}
	if p.Arch == winstruct.ArchX64 {
		// Volatility reads how far handles are shifted from this function's code, and takes the
		// usual shift where that code is not in memory. The guest has no such function.
		symbols["ObpCaptureHandleInformationEx"] = map[string]any{"address": ownDataAt - pageSize}
		symbols["CmpHiveListHead"] = map[string]any{"address": ownDataAt - pageSize} // no registry: getsids knows no names
	}
	text, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"format": "6.2.0", "producer": map[string]any{"name": "vmav", "version": "1", "datetime": "2026-01-01T00:00:00"},
			"windows": map[string]any{"pdb": map[string]any{"GUID": p.GUID, "age": p.Age, "database": p.PDB, "machine_type": machine}}},
		"base_types": base, "user_types": types, "enums": map[string]any{
			"_NT_PRODUCT_TYPE": map[string]any{"base": "long", "size": 4,
				"constants": map[string]int{"NtProductWinNt": 1, "NtProductLanManNt": 2, "NtProductServer": 3}},
		}, "symbols": symbols})
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "windows", p.PDB)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d.json", p.GUID, p.Age)), text, 0o644); err != nil {
		t.Fatal(err)
	}
}
