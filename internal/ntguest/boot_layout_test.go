package ntguest

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// moduleRoot is the directory of go.mod, seen from this package's tests.
const moduleRoot = "../.."

// mirrored pairs each C structure of nt_boot.h with its Go mirror.
var mirrored = map[string]any{
	"nt_table": BootTable{}, "nt_cpu": BootCPU{}, "nt_off": BootOff{}, "nt_segment": BootSegment{}, "nt_region": BootRegion{},
	"nt_proc": BootProc{}, "nt_thread": BootThread{}, "nt_fixup": BootFixup{}, "nt_template_thread": BootTemplateThread{},
	"nt_template": BootTemplate{}, "nt_arena": BootArena{}, "nt_range": BootRange{}, "nt_boot": Boot{},
	"nt_rt_header": RuntimeHeader{}, "nt_stub_header": StubHeader{},
}

// mirroredConstants pairs the constants.
var mirroredConstants = map[string]uint64{
	"NT_BOOT_MAGIC": BootMagic, "NT_BOOT_VERSION": uint64(BootVersion), "NT_MAX_CPU": BootMaxCPU, "NT_NONE": uint64(BootNone),
	"NT_RT_MAGIC": runtimeMagic, "NT_STUB_MAGIC": stubMagic,
	"NT_REGION_ZERO": RegionZero, "NT_REGION_INIT": RegionInit, "NT_REGION_IMAGE": RegionImage, "NT_REGION_SHARED": RegionShared,
	"NT_REGION_NONE": RegionNone, "NT_REGION_ALLOC": RegionAlloc,
	"NT_PROC_WOW64": ProcWow64, "NT_PROC_KERNEL": ProcKernel, "NT_PROC_EXITED": ProcExited, "NT_PROC_CRITICAL": ProcCritical,
	"NT_THREAD_READY": ThreadReady, "NT_THREAD_BLOCKED": ThreadBlocked, "NT_THREAD_KERNEL": ThreadKernel, "NT_THREAD_IDLE": ThreadIdle,
	"NT_THREAD_WOW64": ThreadWow64,
	"NT_FIX_RELOC":    FixReloc, "NT_FIX_RELOC_CID": FixRelocCID, "NT_FIX_PID": FixPID, "NT_FIX_PPID": FixPPID, "NT_FIX_TID": FixTID,
	"NT_FIX_DTB": FixDTB, "NT_FIX_USER_DTB": FixUserDTB, "NT_FIX_NOW": FixNow, "NT_FIX_STACK_TOP": FixStackTop,
	"NT_FIX_STACK_LIMIT": FixStackLimit, "NT_FIX_LINK": FixLink, "NT_FIX_CID_PROC": FixCIDProc, "NT_FIX_CID_THREAD": FixCIDThread,
	"NT_FIX_TYPE_INDEX": FixTypeIndex, "NT_FIX_INC32": FixInc32, "NT_FIX_INC64": FixInc64, "NT_FIX_POOL_TAG": FixPoolTag,
	"NT_FIX_PID32": FixPID32, "NT_FIX_COUNTER64": FixCounter64, "NT_FIX_TID32": FixTID32,
	"NT_BOOT_KVA_SHADOW": BootKVAShadow, "NT_BOOT_OB_COOKIE": BootObCookie, "NT_BOOT_CID_PACKED": BootCIDPacked,
	"NT_BOOT_CID_57": BootCID57, "NT_BOOT_LA57": BootLA57,
}

// TestLayoutMatchesHeader has the C compiler say sizes, offsets and values.
func TestLayoutMatchesHeader(t *testing.T) {
	header, err := filepath.Abs(filepath.Join(moduleRoot, "testdata/ntguest/rt/nt_boot.h"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(header)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\nstruct nt_"); n != len(mirrored) {
		t.Errorf("nt_boot.h has %d structures, %d are mirrored", n, len(mirrored))
	}
	var prog strings.Builder
	fmt.Fprintf(&prog, "#include <stdio.h>\n#include <stddef.h>\n#include %q\nint main(void) {\n", header)
	want := make(map[string]uint64)
	for name, v := range mirrored {
		typ := reflect.TypeOf(v)
		want[name] = uint64(binary.Size(v))
		fmt.Fprintf(&prog, "printf(\"%s %%llu\\n\", (u64)sizeof(struct %s));\n", name, name)
		off := uint64(0)
		for i := range typ.NumField() {
			f := typ.Field(i)
			key := name + "." + f.Tag.Get("c")
			want[key] = off
			fmt.Fprintf(&prog, "printf(\"%s %%llu\\n\", (u64)offsetof(struct %s, %s));\n", key, name, f.Tag.Get("c"))
			off += uint64(binary.Size(reflect.Zero(f.Type).Interface()))
		}
	}
	for name, v := range mirroredConstants {
		want[name] = v
		fmt.Fprintf(&prog, "printf(\"%s %%llu\\n\", (u64)%s);\n", name, name)
	}
	prog.WriteString("return 0; }\n")
	dir := t.TempDir()
	src, bin := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	if err := os.WriteFile(src, []byte(prog.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-o", bin, src).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		var key string
		var got uint64
		if _, err := fmt.Sscan(line, &key, &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		seen++
		if got != want[key] {
			t.Errorf("%s is %d in C, %d in Go", key, got, want[key])
		}
	}
	if seen != len(want) {
		t.Errorf("the C program printed %d values, want %d", seen, len(want))
	}
}
