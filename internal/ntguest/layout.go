package ntguest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"vmav.dev/vmav/internal/winstruct"
)

// builds64 are the 64-bit builds of which only a layout is known.
var builds64 = []struct{ name, layout string }{
	{"10.0.22621", "10.0.22621.382"},
	{"10.0.22631", "10.0.22631.2428"},
	{"10.0.26100", "10.0.26100.0"},
	{"10.0.26200", "10.0.26200.0"},
}

// layoutBuild is a build of which only the layout of its structures is known, and not the
// place of variables in its image. Therefore the guest's kernel is an image of its own,
// with its own identity.
func layoutBuild(name, pdb string, e winstruct.Entry) Build {
	b := newBuild(name, e)
	b.layout = e
	b.Identity = ownIdentity(name, pdb)
	return b
}

func ownIdentity(name, pdb string) winstruct.Identity {
	sum := sha256.Sum256([]byte("vmav NT test guest " + name))
	return winstruct.Identity{PDB: pdb, GUID: strings.ToUpper(hex.EncodeToString(sum[:16])), Age: 1}
}

// layoutBuilds64 returns the builds of builds64.
func layoutBuilds64() ([]Build, error) {
	var out []Build
	layouts := winstruct.BuiltIn().Layouts()
	for _, w := range builds64 {
		for _, e := range layouts {
			if e.Version == w.layout && e.Arch == winstruct.ArchX64 {
				out = append(out, layoutBuild(w.name, "ntkrnlmp.pdb", e))
			}
		}
	}
	if len(out) != len(builds64) {
		return nil, fmt.Errorf("the built-in layouts hold %d of the guest's %d 64-bit builds", len(out), len(builds64))
	}
	return out, nil
}

// hasLayoutOnly reports whether the build's kernel is an image of the guest's own.
func (bd *Build) hasLayoutOnly() bool { return bd.layout.Name != "" }

// Profile returns the profile of the guest's kernel. Of the builds of which only a layout is
// known, no store has it.
func (m *Machine) Profile() *winstruct.Profile { return m.b.profile }

// The symbols of the guest's own kernel images.
var (
	codeBoth = []string{"DbgPrint", "ExAllocatePoolWithTag", "ExFreePoolWithTag", "IoCreateDevice", "IofCompleteRequest", "KeBugCheckEx",
		"KeInitializeEvent", "KeSetEvent", "KeWaitForSingleObject",
		"MmGetSystemRoutineAddress", "MmMapIoSpace", "NtClose", "NtCreateFile", "NtOpenProcess", "NtQuerySystemInformation", "NtReadFile",
		"NtTerminateProcess", "ObReferenceObjectByHandle", "ObfDereferenceObject", "PsGetCurrentProcessId", "PsGetProcessId",
		"PsLookupProcessByProcessId", "PsSetCreateProcessNotifyRoutine", "RtlInitUnicodeString", "ZwClose", "ZwCreateFile", "memcpy", "memset"}
	code32 = []string{"KiFastCallEntry", "KiSystemService", "KiTrap00", "KiTrap03", "KiTrap0E"}
	code64 = []string{"KiBreakpointTrap", "KiBreakpointTrapShadow", "KiDivideErrorFault", "KiDivideErrorFaultShadow", "KiPageFault", "KiPageFaultShadow",
		"KiSystemCall32", "KiSystemCall32Shadow", "KiSystemCall64", "KiSystemCall64Shadow"}
	dataBoth = []string{"CmNtCSDVersion", "KdDebuggerDataBlock", "KdVersionBlock", "KeNumberProcessors", "KiInitialProcess",
		"KiProcessorBlock", "MmHighestUserAddress", "MmProtectToValue", "MmSystemRangeStart", "MmUserProbeAddress", "NtBuildGUID", "NtBuildLab",
		"NtBuildNumber", "ObTypeIndexTable", "ObpInfoMaskToOffset", "ObpRootDirectoryObject", "PsActiveProcessHead", "PsInitialSystemProcess",
		"PsLoadedModuleList", "PspCidTable"}
	data32    = []string{"CmpHiveListHead", "KiInitialPCR"}
	data64    = []string{"KiKvaShadow", "PsIdleProcess", "PsLoadedModuleResource"}
	dataWin10 = []string{"KdpDataBlockEncoded", "MiState", "ObHeaderCookie"}
)

// Parts of the kernel's own image, RVAs.
const (
	ownCodeAt   = 0x6000
	ownCodeStep = 0x1230 // so that code lies on many pages
	ownDataAt   = 0x140000
)

// ownProfile places the symbols of the guest's own kernel image.
func (bd *Build) ownProfile() (*winstruct.Profile, error) {
	layout, err := winstruct.BuiltIn().Open(bd.layout)
	if err != nil {
		return nil, err
	}
	code, data := append(codeBoth[:len(codeBoth):len(codeBoth)], code64...), append(dataBoth[:len(dataBoth):len(dataBoth)], data64...)
	if bd.X86 {
		code, data = append(codeBoth[:len(codeBoth):len(codeBoth)], code32...), append(dataBoth[:len(dataBoth):len(dataBoth)], data32...)
	}
	if bd.Major >= 10 {
		data = append(data, dataWin10...)
	}
	spans := (&builder{profile: layout}).dataSpans()
	symbols := make(map[string]uint64)
	at := uint64(ownCodeAt)
	for _, name := range code {
		symbols[name] = at
		at += ownCodeStep
	}
	at = ownDataAt
	for _, name := range data {
		symbols[name] = at
		at = (at + max(spans[name], 16) + 0x13f) &^ 0xf
	}
	return layout.ForImage(bd.Identity, symbols), nil
}

// packsFor57 is the first build whose kernel for 57-bit addresses, ntkrla57.exe, is known to
// pack handle table entries in its own way (System Informer, kphdyn.xml).
const packsFor57 = 25398

// for57 reports whether the guest runs the kernel for 57-bit addresses.
func (b *builder) for57() bool {
	return b.opts.LA57 && b.build.hasLayoutOnly() && b.build.Number >= packsFor57
}

// pack57 changes a profile into that of the kernel for 57-bit addresses: 53 bits of an
// object's address from bit 11 of a handle table entry on, its attributes from bit 8.
func pack57(p *winstruct.Profile) (*winstruct.Profile, error) {
	var text bytes.Buffer
	if err := p.SaveText(&text); err != nil {
		return nil, err
	}
	_, body, _ := bytes.Cut(text.Bytes(), []byte("\n")) // the first line has the digest
	var file map[string]any
	if err := json.Unmarshal(append([]byte(`{"vmav_profile":2,`), body...), &file); err != nil {
		return nil, err
	}
	bits := map[string][2]int{"RefCnt": {1, 8}, "Attributes": {8, 11}, "ObjectPointerBits": {11, 64}}
	for _, s := range file["types"].([]any) {
		s := s.([]any)
		if s[0] != "_HANDLE_TABLE_ENTRY" {
			continue
		}
		for _, f := range s[2].([]any) {
			f := f.([]any)
			if at, ok := bits[f[0].(string)]; ok {
				opts := f[3].(map[string]any)
				opts["start_bit"], opts["end_bit"] = at[0], at[1]
			}
		}
	}
	changed, err := json.Marshal(file)
	if err != nil {
		return nil, err
	}
	return winstruct.LoadHandMade(bytes.NewReader(changed))
}
