package introspect

import (
	"errors"
	"slices"

	"vmav.dev/vmav/internal/winstruct"
)

// Offsets has all symbols and structure offsets of one build that introspection needs. They
// are resolved once from the build's profile. Those that are not optional must be there;
// winstruct.Compile names the missing ones. Symbols are RVAs of the kernel image, offsets
// are in bytes.
type Offsets struct {
	Sym struct {
		ActiveProcessHead uint64 `win:"sym(PsActiveProcessHead),optional"`
		LoadedModuleList  uint64 `win:"sym(PsLoadedModuleList),optional"`
		CidTable          uint64 `win:"sym(PspCidTable),optional"`
		BuildNumber       uint64 `win:"sym(NtBuildNumber),optional"`
		MiState           uint64 `win:"sym(MiState),optional"`
	}
	Process struct {
		Size           uint32          `win:"sizeof(_EPROCESS)"`
		DTB            uint32          `win:"_EPROCESS.Pcb.DirectoryTableBase"`
		UserDTB        uint32          `win:"_EPROCESS.Pcb.UserDirectoryTableBase,optional"`
		PID            uint32          `win:"_EPROCESS.UniqueProcessId"`
		PPID           uint32          `win:"_EPROCESS.InheritedFromUniqueProcessId"`
		Links          uint32          `win:"_EPROCESS.ActiveProcessLinks"`
		Name           winstruct.Field `win:"_EPROCESS.ImageFileName"`
		CreateTime     uint32          `win:"_EPROCESS.CreateTime"`
		ExitTime       uint32          `win:"_EPROCESS.ExitTime"`
		ExitStatus     uint32          `win:"_EPROCESS.ExitStatus"`
		Session        uint32          `win:"_EPROCESS.Session,optional"`
		PEB            uint32          `win:"_EPROCESS.Peb"`
		Wow64          uint32          `win:"_EPROCESS.WoW64Process|_EPROCESS.Wow64Process,optional"`
		ActiveThreads  uint32          `win:"_EPROCESS.ActiveThreads"`
		ThreadList     uint32          `win:"_EPROCESS.ThreadListHead,optional"`
		ObjectTable    uint32          `win:"_EPROCESS.ObjectTable"`
		SectionObject  uint32          `win:"_EPROCESS.SectionObject"`
		SectionBase    uint32          `win:"_EPROCESS.SectionBaseAddress"`
		ImageFile      uint32          `win:"_EPROCESS.ImageFilePointer,optional"`
		AuditName      uint32          `win:"_EPROCESS.SeAuditProcessCreationInfo.ImageFileName"`
		VadRoot        uint32          `win:"_EPROCESS.VadRoot"`
		VadCount       winstruct.Field `win:"_EPROCESS.VadCount|_EPROCESS.VadRoot.NumberGenericTableElements,optional"`
		Critical       winstruct.Field `win:"_EPROCESS.BreakOnTermination"`
		Protection     uint32          `win:"_EPROCESS.Protection.Level|_EPROCESS.Protection,optional"`
		Wow64HasObject uint32          `win:"_EPROCESS.WoW64Process,optional"`
		Token          uint32          `win:"_EPROCESS.Token,optional"`
		Exiting        winstruct.Field `win:"_EPROCESS.ProcessExiting,optional"`
		Delete         winstruct.Field `win:"_EPROCESS.ProcessDelete,optional"`
	}
	Token struct {
		Count uint32 `win:"_TOKEN.UserAndGroupCount,optional"`
		Users uint32 `win:"_TOKEN.UserAndGroups,optional"`
		SID   uint32 `win:"_SID_AND_ATTRIBUTES.Sid,optional"`
	}
	TEB struct {
		Self       uint32 `win:"_TEB.NtTib.Self,optional"`
		StackBase  uint32 `win:"_TEB.NtTib.StackBase,optional"`
		StackLimit uint32 `win:"_TEB.NtTib.StackLimit,optional"`
		PID        uint32 `win:"_TEB.ClientId.UniqueProcess,optional"`
		TID        uint32 `win:"_TEB.ClientId.UniqueThread,optional"`
		LastError  uint32 `win:"_TEB.LastErrorValue,optional"`
		LastStatus uint32 `win:"_TEB.LastStatusValue,optional"`
	}
	ObjectBody uint32 `win:"_OBJECT_HEADER.Body,optional"`
	Ewow64PEB  uint32 `win:"_EWOW64PROCESS.Peb,optional"`
	SessionID  uint32 `win:"_MM_SESSION_SPACE.SessionId,optional"`
	AuditName  uint32 `win:"_OBJECT_NAME_INFORMATION.Name"`

	HandleTableCode uint32          `win:"_HANDLE_TABLE.TableCode"`
	HandleEntrySize uint32          `win:"sizeof(_HANDLE_TABLE_ENTRY)"`
	HandleBits      winstruct.Field `win:"_HANDLE_TABLE_ENTRY.ObjectPointerBits,optional"`

	PEB struct {
		ImageBase  uint32 `win:"_PEB.ImageBaseAddress"`
		Ldr        uint32 `win:"_PEB.Ldr"`
		Parameters uint32 `win:"_PEB.ProcessParameters"`
		SessionID  uint32 `win:"_PEB.SessionId"`
		Size       uint32 `win:"sizeof(_PEB)"`
	}
	PEB32 struct {
		Ldr uint32 `win:"_PEB32.Ldr,optional"`
	}
	Params struct {
		CommandLine uint32 `win:"_RTL_USER_PROCESS_PARAMETERS.CommandLine"`
		ImagePath   uint32 `win:"_RTL_USER_PROCESS_PARAMETERS.ImagePathName"`
	}
	Ldr struct {
		Load   uint32 `win:"_PEB_LDR_DATA.InLoadOrderModuleList"`
		Memory uint32 `win:"_PEB_LDR_DATA.InMemoryOrderModuleList"`
		Init   uint32 `win:"_PEB_LDR_DATA.InInitializationOrderModuleList"`
	}
	Entry struct {
		Size     uint32 `win:"sizeof(_LDR_DATA_TABLE_ENTRY)"`
		Load     uint32 `win:"_LDR_DATA_TABLE_ENTRY.InLoadOrderLinks"`
		Memory   uint32 `win:"_LDR_DATA_TABLE_ENTRY.InMemoryOrderLinks"`
		Init     uint32 `win:"_LDR_DATA_TABLE_ENTRY.InInitializationOrderLinks"`
		Base     uint32 `win:"_LDR_DATA_TABLE_ENTRY.DllBase"`
		Image    uint32 `win:"_LDR_DATA_TABLE_ENTRY.SizeOfImage"`
		FullName uint32 `win:"_LDR_DATA_TABLE_ENTRY.FullDllName"`
		BaseName uint32 `win:"_LDR_DATA_TABLE_ENTRY.BaseDllName"`
		Entry    uint32 `win:"_LDR_DATA_TABLE_ENTRY.EntryPoint"`
		Original uint32 `win:"_LDR_DATA_TABLE_ENTRY.OriginalBase,optional"`
	}
	Driver struct {
		Size     uint32 `win:"sizeof(_KLDR_DATA_TABLE_ENTRY)|sizeof(_LDR_DATA_TABLE_ENTRY)"`
		Links    uint32 `win:"_KLDR_DATA_TABLE_ENTRY.InLoadOrderLinks|_LDR_DATA_TABLE_ENTRY.InLoadOrderLinks"`
		Base     uint32 `win:"_KLDR_DATA_TABLE_ENTRY.DllBase|_LDR_DATA_TABLE_ENTRY.DllBase"`
		Image    uint32 `win:"_KLDR_DATA_TABLE_ENTRY.SizeOfImage|_LDR_DATA_TABLE_ENTRY.SizeOfImage"`
		FullName uint32 `win:"_KLDR_DATA_TABLE_ENTRY.FullDllName|_LDR_DATA_TABLE_ENTRY.FullDllName"`
		BaseName uint32 `win:"_KLDR_DATA_TABLE_ENTRY.BaseDllName|_LDR_DATA_TABLE_ENTRY.BaseDllName"`
	}
	VAD struct {
		Size       uint32          `win:"sizeof(_MMVAD)"`
		ShortSize  uint32          `win:"sizeof(_MMVAD_SHORT)"`
		Left       uint32          `win:"_MMVAD_SHORT.VadNode.Left|_MMVAD_SHORT.VadNode.LeftChild|_MMVAD_SHORT.LeftChild"`
		Right      uint32          `win:"_MMVAD_SHORT.VadNode.Right|_MMVAD_SHORT.VadNode.RightChild|_MMVAD_SHORT.RightChild"`
		TreeRoot   uint32          `win:"_EPROCESS.VadRoot.Root|_EPROCESS.VadRoot.BalancedRoot.RightChild|_EPROCESS.VadRoot"`
		Start      winstruct.Field `win:"_MMVAD_SHORT.StartingVpn"`
		End        winstruct.Field `win:"_MMVAD_SHORT.EndingVpn"`
		StartHigh  uint32          `win:"_MMVAD_SHORT.StartingVpnHigh,optional"`
		EndHigh    uint32          `win:"_MMVAD_SHORT.EndingVpnHigh,optional"`
		Flags      uint32          `win:"_MMVAD_SHORT.u.VadFlags|_MMVAD_SHORT.u"`
		Type       winstruct.Field `win:"_MMVAD_FLAGS.VadType|_MMVAD_FLAGS.ImageMap"`
		Protection winstruct.Field `win:"_MMVAD_FLAGS.Protection"`
		Private    winstruct.Field `win:"_MMVAD_FLAGS.PrivateMemory"`
		Subsection uint32          `win:"_MMVAD.Subsection,optional"`
		Control    uint32          `win:"_MMVAD.ControlArea,optional"` // until Windows Server 2003, in place of Subsection
		FirstPTE   uint32          `win:"_MMVAD.FirstPrototypePte"`
		LastPTE    uint32          `win:"_MMVAD.LastContiguousPte"`
	}
	SubsectionControl uint32 `win:"_SUBSECTION.ControlArea"`
	ControlFile       uint32 `win:"_CONTROL_AREA.FilePointer"`
	FileName          uint32 `win:"_FILE_OBJECT.FileName"`

	Subsection struct {
		Size       uint32          `win:"sizeof(_SUBSECTION)"`
		Base       uint32          `win:"_SUBSECTION.SubsectionBase"`
		Next       uint32          `win:"_SUBSECTION.NextSubsection"`
		Pages      winstruct.Field `win:"_SUBSECTION.PtesInSubsection"`
		Sector     winstruct.Field `win:"_SUBSECTION.StartingSector"`
		Full       winstruct.Field `win:"_SUBSECTION.NumberOfFullSectors"`
		Flags      uint32          `win:"_SUBSECTION.u|_SUBSECTION.SubsectionFlags"` // its second name since Windows 11 24H2
		Protection winstruct.Field `win:"_MMSUBSECTION_FLAGS.Protection"`
		SectorHigh winstruct.Field `win:"_MMSUBSECTION_FLAGS.StartingSector4132"`
		End        winstruct.Field `win:"_MMSUBSECTION_FLAGS.SectorEndOffset"`
	}
	Control struct {
		Size  uint32          `win:"sizeof(_CONTROL_AREA)"`
		Flags uint32          `win:"_CONTROL_AREA.u"`
		Image winstruct.Field `win:"_MMSECTION_FLAGS.Image"`
	}
	// From a FILE_OBJECT to the pages of the file: those of its data section, and the cache
	// manager's views of it.
	FilePointers uint32 `win:"_FILE_OBJECT.SectionObjectPointer"`
	Pointers     struct {
		Size  uint32 `win:"sizeof(_SECTION_OBJECT_POINTERS)"`
		Data  uint32 `win:"_SECTION_OBJECT_POINTERS.DataSectionObject"`
		Cache uint32 `win:"_SECTION_OBJECT_POINTERS.SharedCacheMap"`
	}
	Cache struct {
		Size        uint32 `win:"sizeof(_SHARED_CACHE_MAP)"`
		FileSize    uint32 `win:"_SHARED_CACHE_MAP.FileSize"`
		SectionSize uint32 `win:"_SHARED_CACHE_MAP.SectionSize"`
		Vacbs       uint32 `win:"_SHARED_CACHE_MAP.Vacbs"`
	}
	Vacb struct {
		Size uint32 `win:"sizeof(_VACB)"`
		Base uint32 `win:"_VACB.BaseAddress"`
		Map  uint32 `win:"_VACB.SharedCacheMap"`
	}

	InvalidPteMask uint32          `win:"_MI_SYSTEM_INFORMATION.Hardware.InvalidPteMask,optional"`
	SwizzleBit     winstruct.Field `win:"_MMPTE_TRANSITION.SwizzleBit,optional"`
}

// Usable checks that a profile has all that introspection needs. The error is a
// *winstruct.MissingFactsError that names what is missing.
func Usable(p *winstruct.Profile) error {
	_, err := compile(p)
	return err
}

// compile resolves the symbols and offsets of a build.
func compile(p *winstruct.Profile) (*Offsets, error) {
	o, err := compileOffsets(p)
	missing := &winstruct.MissingFactsError{Identity: p.Identity}
	if err != nil && !errors.As(err, &missing) {
		return nil, err
	}
	for _, name := range neededSymbols {
		fact := "sym(" + name + ")"
		if _, ok := p.Symbol(name); !ok && !slices.Contains(missing.Unasked, fact) {
			missing.Facts = append(missing.Facts, fact)
		}
	}
	if len(missing.Facts) > 0 || len(missing.Unasked) > 0 {
		slices.Sort(missing.Facts)
		return nil, missing
	}
	return o, nil
}

// neededSymbols are the symbols without which a guest cannot be read, unless infer finds
// them in the guest.
var neededSymbols = []string{"PsActiveProcessHead", "PsLoadedModuleList", "PspCidTable"}

// compileOffsets resolves the offsets of a build and those of its symbols that the profile
// has.
func compileOffsets(p *winstruct.Profile) (*Offsets, error) {
	o := new(Offsets)
	if err := winstruct.Compile(p, o); err != nil {
		return nil, err
	}
	if o.VAD.Subsection == winstruct.Missing && o.VAD.Control == winstruct.Missing {
		return nil, &winstruct.MissingFactsError{Identity: p.Identity, Facts: []string{"_MMVAD.Subsection"}}
	}
	return o, nil
}
