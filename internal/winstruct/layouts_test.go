package winstruct

import "testing"

// published are offsets that others have published than those whom the layouts come from:
// LibVMI's and XenAccess's example configurations (Windows XP), the dumps of ntdll.dll's
// symbols by the ntdiff project (Windows 7 SP1 and 8.1), and for 64-bit builds System
// Informer's kphdyn.xml (ObjectTable, SectionObject, ObjectPointerBits) and EDRSandblast
// (Protection).
var published = map[string]map[string]map[string]uint32{
	"5.1.2600.2180": {"_EPROCESS": {"Pcb.DirectoryTableBase": 0x18, "UniqueProcessId": 0x84, "ActiveProcessLinks": 0x88, "ImageFileName": 0x174, "Peb": 0x1b0},
		"_PEB": {"ImageBaseAddress": 0x8, "ProcessHeap": 0x18}},
	"6.1.7601.17514": {
		"_EPROCESS": {"Pcb.DirectoryTableBase": 0x18, "CreateTime": 0xa0, "ExitTime": 0xa8, "UniqueProcessId": 0xb4, "ActiveProcessLinks": 0xb8,
			"ObjectTable": 0xf4, "Token": 0xf8, "SectionObject": 0x128, "SectionBaseAddress": 0x12c, "InheritedFromUniqueProcessId": 0x140,
			"Session": 0x168, "ImageFileName": 0x16c,
			"ThreadListHead": 0x188, "ActiveThreads": 0x198, "Peb": 0x1a8, "SeAuditProcessCreationInfo.ImageFileName": 0x1ec, "BreakOnTermination": 0x270,
			"ProcessExiting": 0x270, "ProcessDelete": 0x270, "ExitStatus": 0x274, "VadRoot": 0x278, "VadRoot.BalancedRoot.RightChild": 0x280},
		"_MMADDRESS_NODE": {"u1.Parent": 0, "LeftChild": 4, "RightChild": 8, "StartingVpn": 0xc, "EndingVpn": 0x10},
	},
	"6.3.9600.16384": {
		"_EPROCESS": {"Pcb.DirectoryTableBase": 0x18, "CreateTime": 0xa8, "UniqueProcessId": 0xb4, "ActiveProcessLinks": 0xb8, "BreakOnTermination": 0xc4,
			"Token":         0xec,
			"SectionObject": 0x11c, "SectionBaseAddress": 0x120, "InheritedFromUniqueProcessId": 0x134, "Peb": 0x140, "Session": 0x144, "ObjectTable": 0x150,
			"ImageFileName": 0x170, "SeAuditProcessCreationInfo.ImageFileName": 0x184, "ThreadListHead": 0x194, "ActiveThreads": 0x19c, "ExitStatus": 0x270,
			"VadRoot.Root": 0x274, "ExitTime": 0x2b0, "Protection.Level": 0x2ce},
	},
	"10.0.22621.382": {"_EPROCESS": {"ObjectTable": 0x570, "SectionObject": 0x518, "Protection.Level": 0x87a}, "_HANDLE_TABLE_ENTRY": {"ObjectPointerBits": 0}},
	"10.0.26100.0":   {"_EPROCESS": {"ObjectTable": 0x300, "SectionObject": 0x2a8, "Protection.Level": 0x5fa}, "_HANDLE_TABLE_ENTRY": {"ObjectPointerBits": 0}},
}

// publishedSizes are sizes of _EPROCESS from the same sources.
var publishedSizes = map[string]uint32{"6.1.7601.17514": 0x2c0, "6.3.9600.16384": 0x2f8}

// Layouts agree with what others have published of the same builds.
func TestLayoutsAgreeWithOtherSources(t *testing.T) {
	store := BuiltIn()
	for _, e := range store.Layouts() {
		p, err := store.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		for structure, fields := range published[e.Version] {
			for path, want := range fields {
				if f, err := p.Field(structure, path); err != nil || f.Offset != want {
					t.Errorf("%s: %s.%s at %#x, %v; published at %#x", e.Version, structure, path, f.Offset, err, want)
				}
			}
		}
		if want := publishedSizes[e.Version]; want != 0 {
			if s, ok := p.Struct("_EPROCESS"); !ok || s.Size != want {
				t.Errorf("%s: _EPROCESS of %#x bytes, published as %#x", e.Version, s.Size, want)
			}
		}
		delete(published, e.Version)
	}
	if len(published) != 0 {
		t.Errorf("no layouts of %d versions", len(published))
	}
}
