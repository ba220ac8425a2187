package memhook

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/source"
)

const header = "../../../kernel/kvm-memhook/uapi"

// mirrors are the structures of the header with their copies here. A member's name in
// C is that in Go in lower case with underscores left out.
var mirrors = map[string]any{
	"kvm_memhook_attach": attachArg{}, "kvm_memhook_info": infoArg{}, "kvm_memhook_slot": slotArg{}, "kvm_memhook_slots": slotsArg{},
	"kvm_memhook_range": rangeArg{}, "kvm_memhook_rw": rwArg{}, "kvm_memhook_segment": segmentArg{}, "kvm_memhook_table": tableArg{},
	"kvm_memhook_regs": regsArg{}, "kvm_memhook_hooks": hooksArg{}, "kvm_memhook_guard": guardArg{}, "kvm_memhook_action": actionArg{},
	"kvm_memhook_cancel": cancelArg{}, "kvm_memhook_event": eventArg{},
}

// unmirrored are structures that this client does without.
var unmirrored = map[string]string{"kvm_memhook_ring": "events are read(2)"}

// constants are the header's numbers with what this package and source make of them.
var constants = map[string]uint64{
	"API_MAJOR": apiMajor, "API_MINOR": apiMinor, "API": api,
	"MAX_RANGES": maxRanges, "MAX_RANGE_BYTES": maxRangeBytes, "MAX_ACTIONS": source.MaxActions, "MAX_SAVED": source.MaxSaved,
	"MAX_GUARDS": source.MaxGuards, "MAX_WATCHES": source.MaxWatches,
	"VENDOR_AMD": vendorAMD, "VENDOR_INTEL": vendorIntel, "STATE_GONE": stateGone, "SLOT_READONLY": slotReadonly,
	"REGS_HALTED": regsHalted, "REGS_NESTED": regsNested,
	"HOOK_NEW_DTB": hookNewDTB, "HOOK_SWITCH": hookSwitch, "HOOK_USER": hookUser,
	"ACTION_REDIRECT": uint64(source.ActionRedirect), "ACTION_PAGE_IN": uint64(source.ActionPageIn), "ACTION_CAPTURE": uint64(source.ActionCapture),
	"ACTION_RESTORE": uint64(source.ActionRestore), "ACTION_HOLD": uint64(source.ActionHold),
	"ACTION_ALL_THREADS": uint64(source.AllThreads), "ACTION_RIP_RANGE": uint64(source.InRIPRange), "ACTION_TEB": uint64(source.OfTEB),
	"ACTION_CODE64": uint64(source.InCode64), "ACTION_CODE32": uint64(source.InCode32), "ACTION_SAVE": uint64(source.SaveContext),
	"ACTION_PARKED": uint64(source.OnlyParked),
	"SET_RIP":       uint64(source.SetRIP), "SET_RFLAGS": uint64(source.SetRFLAGS), "SET_CODE64": uint64(source.SetCode64),
	"EVENT_GONE": uint64(source.EventGone), "EVENT_NEW_DTB": uint64(source.EventNewDTB), "EVENT_SWITCH": uint64(source.EventSwitch),
	"EVENT_USER": uint64(source.EventUser), "EVENT_APPLIED": uint64(source.EventApplied), "EVENT_EXPIRED": uint64(source.EventExpired),
	"EVENT_CANCELLED": uint64(source.EventCancelled),
	"REASON_ASKED":    uint64(source.ReasonAsked), "REASON_GUARD": uint64(source.ReasonGuard), "REASON_MOVED": uint64(source.ReasonMoved),
	"REASON_STATE": uint64(source.ReasonState),
	"GET_API":      getAPI, "ATTACH": uint64(attach), "GET_INFO": uint64(getInfo), "GET_SLOTS": uint64(getSlots),
	"READ": uint64(readMem), "WRITE": uint64(writeMem),
	"SYNC": syncMap, "GET_REGS": uint64(getRegs), "SET_HOOKS": uint64(setHooks), "ADD_ACTION": uint64(addAction), "CANCEL": uint64(cancel),
}

// unused are numbers of the header that this client does without.
var unused = map[string]bool{"DEVICE": true, "RING_EVENTS": true, "RING_OFFSET": true, "IOC": true, "CANCEL_ALL": true}

// TestABIIsTheHeaders compiles a program that prints the header's sizes, offsets and
// numbers, and compares them with the mirror. What the header has and the mirror lacks
// fails, too.
func TestABIIsTheHeaders(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(header, "kvm_memhook.h"))
	if err != nil {
		t.Fatal(err)
	}
	structs, macros := declarations(string(text))
	if len(structs) == 0 || len(macros) == 0 {
		t.Fatal("nothing found in the header")
	}
	for _, s := range structs {
		if mirrors[s] == nil && unmirrored[s] == "" {
			t.Errorf("struct %s of the header has no mirror", s)
		}
	}
	var c strings.Builder
	c.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include \"kvm_memhook.h\"\nint main(void)\n{\n\tprintf(\"{\\\"\\\":0\");\n")
	number := func(key, expr string) {
		fmt.Fprintf(&c, "\tprintf(\",\\\"%s\\\":%%llu\", (unsigned long long)(%s));\n", key, expr)
	}
	members := membersOf(string(text))
	for name, v := range mirrors {
		number(name, "sizeof(struct "+name+")")
		typ := reflect.TypeOf(v)
		if len(members[name]) != typ.NumField() {
			t.Errorf("struct %s has %d members, its mirror %d", name, len(members[name]), typ.NumField())
			continue
		}
		for i, m := range members[name] {
			f := typ.Field(i)
			if strings.ReplaceAll(m, "_", "") != strings.ToLower(f.Name) {
				t.Errorf("struct %s: member %d is %s, in the mirror %s", name, i, m, f.Name)
			}
			number(name+"."+f.Name, "offsetof(struct "+name+", "+m+")")
			number(name+"."+f.Name+"#", "sizeof(((struct "+name+" *)0)->"+m+")")
		}
	}
	for _, m := range macros {
		if _, ok := constants[m]; ok {
			number(m, "KVM_MEMHOOK_"+m)
		} else if !unused[m] {
			t.Errorf("KVM_MEMHOOK_%s has no counterpart", m)
		}
	}
	c.WriteString("\tprintf(\"}\\n\");\n\treturn 0;\n}\n")
	got := compileAndRun(t, c.String())
	check := func(key string, want uint64) {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s: the header says %d (there: %v), the mirror %d", key, v, ok, want)
		}
	}
	for name, want := range constants {
		check(name, want)
	}
	for name, v := range mirrors {
		typ := reflect.TypeOf(v)
		check(name, uint64(typ.Size()))
		for i := range typ.NumField() {
			f := typ.Field(i)
			check(name+"."+f.Name, uint64(f.Offset))
			check(name+"."+f.Name+"#", uint64(f.Type.Size()))
		}
	}
}

// declarations lists the header's structures, and its macros without their prefix.
func declarations(text string) (structs, macros []string) {
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) == 3 && f[0] == "struct" && f[2] == "{":
			structs = append(structs, f[1])
		case len(f) >= 3 && f[0] == "#define" && strings.HasPrefix(f[1], "KVM_MEMHOOK_"):
			macros = append(macros, strings.TrimPrefix(f[1], "KVM_MEMHOOK_"))
		}
	}
	return structs, macros
}

// membersOf lists the members of each structure in their order.
func membersOf(text string) map[string][]string {
	out := make(map[string][]string)
	current := ""
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) == 3 && f[0] == "struct" && f[2] == "{":
			current = f[1]
		case strings.HasPrefix(line, "};"):
			current = ""
		case current != "" && strings.Contains(line, ";"):
			decl, _, _ := strings.Cut(line, ";")
			words := strings.Fields(decl)
			name, _, _ := strings.Cut(words[len(words)-1], "[")
			out[current] = append(out[current], name)
		}
	}
	return out
}

func compileAndRun(t *testing.T, program string) map[string]uint64 {
	t.Helper()
	dir := t.TempDir()
	src, exe := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	if err := os.WriteFile(src, []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-Wall", "-Werror", "-I", header, "-o", exe, src).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	out, err := exec.Command(exe).Output()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]uint64)
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return got
}
