package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"vmav.dev/vmav/internal/winstruct"
)

// vtypesFiles are the files of type definitions of Volatility 2 (in the folder
// volatility/plugins/overlays/windows of its repository) that layouts are made from, each
// with its build according to the profiles beside it.
var vtypesFiles = []struct{ file, version string }{
	{"xp_sp2_x86_vtypes.py", "5.1.2600.2180"},
	{"xp_sp3_x86_vtypes.py", "5.1.2600.5512"},
	{"win2003_sp0_x86_vtypes.py", "5.2.3790.0"},
	{"win2003_sp1_x86_vtypes.py", "5.2.3790.1830"},
	{"win2003_sp2_x86_vtypes.py", "5.2.3790.3959"},
	{"vista_sp0_x86_vtypes.py", "6.0.6000.16386"},
	{"vista_sp1_x86_vtypes.py", "6.0.6001.18000"},
	{"vista_sp2_x86_vtypes.py", "6.0.6002.18005"},
	{"win7_sp0_x86_vtypes.py", "6.1.7600.16385"},
	{"win7_sp1_x86_vtypes.py", "6.1.7601.17514"},
	{"win7_sp1_x86_BBA98F40_vtypes.py", "6.1.7601.23418"},
	{"win7_sp1_x86_24000_vtypes.py", "6.1.7601.24000"},
	{"win8_sp0_x86_vtypes.py", "6.2.9200.16384"},
	{"win8_sp1_x86_vtypes.py", "6.3.9600.16384"},
	{"win81_u1_x86_vtypes.py", "6.3.9600.17031"},
	{"win10_x86_vtypes.py", "10.0.10240.16384"},
	{"win10_x86_10240_17770_vtypes.py", "10.0.10240.17770"},
	{"win10_x86_44B89EEA_vtypes.py", "10.0.10586.420"},
	{"win10_x86_9619274A_vtypes.py", "10.0.14393.0"},
	{"win10_x86_15063_vtypes.py", "10.0.15063.0"},
	{"win10_x86_16299_vtypes.py", "10.0.16299.15"},
	{"win10_x86_17134_vtypes.py", "10.0.17134.1"},
	{"win10_x86_17763_vtypes.py", "10.0.17763.0"},
	{"win10_x86_18362_vtypes.py", "10.0.18362.0"},
	{"win10_x86_19041_vtypes.py", "10.0.19041.0"},
}

func makeLayouts(from, to string) error {
	for _, f := range vtypesFiles {
		text, err := os.ReadFile(filepath.Join(from, f.file))
		if err != nil {
			return err
		}
		defs, err := parseVtypes(string(text))
		if err != nil {
			return fmt.Errorf("read %s: %w", f.file, err)
		}
		p, err := layout(defs, f.version, winstruct.Source{Of: "types",
			From: "public type information of the kernel, by way of the overlay " + f.file + " of Volatility 2.6", Verified: winstruct.VerifiedNone})
		if err != nil {
			return fmt.Errorf("%s: %w", f.file, err)
		}
		path := filepath.Join(to, "x86-"+f.version+".json.zst")
		out, err := os.Create(path)
		if err != nil {
			return err
		}
		if err := winstruct.Pack(p).SaveSmall(out); err != nil {
			return err
		}
		if err := out.Close(); err != nil {
			return err
		}
		fmt.Println(f.version, filepath.Base(path))
	}
	return nil
}

// basics are the sizes of the types that vtypes knows by name, in bytes.
var basics = map[string]uint64{"char": 1, "unsigned char": 1, "short": 2, "unsigned short": 2, "wchar": 2, "long": 4, "unsigned long": 4,
	"int": 4, "unsigned int": 4, "float": 4, "double": 8, "long long": 8, "unsigned long long": 8}

// layout makes a profile from vtypes definitions, without an identity or symbols.
func layout(defs map[string]any, version string, source winstruct.Source) (*winstruct.Profile, error) {
	types := []any{}
	size := func(t []any) (uint64, bool) { return sizeOf(defs, t) }
	for _, name := range slices.Sorted(maps.Keys(defs)) {
		d, ok := defs[name].([]any)
		if !ok || len(d) != 2 {
			return nil, fmt.Errorf("structure %s has an unknown form", name)
		}
		members, ok := d[1].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("structure %s has an unknown form", name)
		}
		fields := []any{}
		for _, member := range slices.Sorted(maps.Keys(members)) {
			pair, ok := members[member].([]any)
			if !ok || len(pair) != 2 {
				return nil, fmt.Errorf("%s.%s has an unknown form", name, member)
			}
			t, ok := pair[1].([]any)
			if !ok || len(t) == 0 {
				return nil, fmt.Errorf("%s.%s has an unknown form", name, member)
			}
			n, ok := size(t)
			if at, isInt := pair[0].(int64); !ok || !isInt || at < 0 {
				continue // of a structure that the symbols leave out, or a value that is no place
			}
			kind, opts := spell(t, n)
			fields = append(fields, []any{member, pair[0], kind, opts})
		}
		types = append(types, []any{name, d[0], fields})
	}
	text, err := json.Marshal(map[string]any{"vmav_profile": 2, "pdb": "ntkrnlmp.pdb", "guid": winstruct.NoGUID, "arch": winstruct.ArchX86,
		"age": 0, "version": version, "sources": []winstruct.Source{source}, "types": types, "enums": map[string]any{}, "symbols": map[string]any{}})
	if err != nil {
		return nil, err
	}
	return winstruct.LoadHandMade(bytes.NewReader(text))
}

func sizeOf(defs map[string]any, t []any) (uint64, bool) {
	kind, _ := t[0].(string)
	switch kind {
	case "pointer":
		return 4, true
	case "pointer64":
		return 8, true
	case "array":
		of, ok := t[2].([]any)
		if !ok {
			return 0, false
		}
		n, ok := sizeOf(defs, of)
		count, isInt := t[1].(int64)
		return n * uint64(count), ok && isInt && count >= 0 // some of XP's are negative, in error
	case "BitField":
		return basics[option(t, "native_type")], true
	case "Enumeration":
		return basics[option(t, "target")], true
	}
	if n, ok := basics[kind]; ok {
		return n, true
	}
	if d, ok := defs[kind].([]any); ok {
		n, ok := d[0].(int64)
		return uint64(n), ok
	}
	return 0, false
}

func option(t []any, name string) string {
	opts, _ := t[1].(map[string]any)
	s, _ := opts[name].(string)
	return s
}

// target describes the type that a pointer or array refers to, for a person.
func target(t any) string {
	of, ok := t.([]any)
	if !ok || len(of) == 0 {
		return "void"
	}
	kind, _ := of[0].(string)
	switch kind {
	case "pointer", "pointer64":
		return "pointer"
	case "array":
		return "array"
	case "Enumeration":
		return option(of, "target")
	}
	return kind
}

// spell is the type as a profile's file spells it, with its options.
func spell(t []any, size uint64) (string, map[string]any) {
	kind, _ := t[0].(string)
	switch kind {
	case "pointer", "pointer64":
		return "Pointer", map[string]any{"type": target(t[1]), "size": size}
	case "array":
		return "Array", map[string]any{"type": target(t[2]), "count": t[1], "size": size}
	case "BitField":
		opts, _ := t[1].(map[string]any)
		return "BitField", map[string]any{"type": option(t, "native_type"), "start_bit": opts["start_bit"], "end_bit": opts["end_bit"], "size": size}
	case "Enumeration":
		return option(t, "target"), map[string]any{"size": size}
	}
	return kind, map[string]any{"size": size}
}
