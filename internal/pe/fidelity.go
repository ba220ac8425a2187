package pe

import (
	"fmt"
	"slices"
)

// Range is the bytes [Start, End): file offsets or RVAs, as the field that has it says.
type Range struct {
	Start uint64 `json:"start"`
	End   uint64 `json:"end"`
}

// Len is the length of the range in bytes.
func (r Range) Len() uint64 { return r.End - r.Start }

// Cause says why it is not known whether bytes of a rebuilt file are the file's own.
type Cause string

// Causes of a Gap.
const (
	CauseMissing    Cause = "page not present"                 // zeros stand in for them
	CauseUnmapped   Cause = "never mapped, zeros assumed"      // raw tails beyond the virtual size, room between headers and sections
	CauseImport     Cause = "bound import without its name"    // an address of this run of the guest
	CauseBound      Cause = "bound at build time"              // a file bound by its vendor: the bound addresses are overwritten
	CauseDelay      Cause = "delay import without its thunk"   //
	CauseRelocation Cause = "relocation not known"             // the table's page is missing
	CauseGuard      Cause = "pointer set by the loader"        // load config
	CauseTLS        Cause = "TLS index set by the loader"      // in the middle of packed code
	CauseOverlay    Cause = "overlay not in the guest's cache" // never mapped, beyond the last section
	CauseHeader     Cause = "header field reconstructed"       //
	CauseDynamic    Cause = "dynamic relocation not undone"    // DVRT
	CauseWritten    Cause = "written since it was loaded"      // by the process or its loader; where, only lost headers tell
)

// Gap is a run of bytes of the rebuilt file of which it is not known whether they are the
// file's own.
type Gap struct {
	Range
	Cause Cause `json:"cause"`
}

// ByteCounts counts the bytes of a rebuilt file by where they came from. The counts of the
// first group add up to the size of the file. Restored and Reconstructed count bytes of
// these that were written over what the page had.
type ByteCounts struct {
	Resident   uint64 `json:"resident"`
	Transition uint64 `json:"transition"`
	Prototype  uint64 `json:"prototype"`
	Private    uint64 `json:"private"`
	DemandZero uint64 `json:"demand_zero"`
	FileCache  uint64 `json:"file_cache"`
	Other      uint64 `json:"other_process"`
	PagedIn    uint64 `json:"paged_in"`     // of pages that the guest has read in on request
	Derived    uint64 `json:"derived"`      // not present, but known from another part of the image, such as its import names
	Assumed    uint64 `json:"assumed_zero"` // never mapped
	Missing    uint64 `json:"missing"`      // not present
	Overlay    uint64 `json:"overlay"`      // beyond the last section, as Options.FileSize says, and not cached; zeros stand in

	Restored      uint64 `json:"restored"`      // the loader's change undone, exactly
	Reconstructed uint64 `json:"reconstructed"` // put there by analysis
	Unknown       uint64 `json:"unknown"`       // present, but changed by the loader in a way that could not be undone
}

// SectionState says how much of one section of a rebuilt file is known.
type SectionState string

// States of a section, from best to worst.
const (
	SectionExact   SectionState = "exact"   // every byte is the file's
	SectionAssumed SectionState = "assumed" // exact but for a tail that was never mapped and is taken to be zeros
	SectionMemory  SectionState = "memory"  // complete, but writable: as it is now, not as it was loaded
	SectionPartial SectionState = "partial" // some bytes missing or unknown
	SectionAbsent  SectionState = "absent"  // nothing of it is there
	SectionNoData  SectionState = "no-data" // has no bytes in the file
)

// SectionFidelity is the record of one section. Offsets and sizes are in bytes.
type SectionFidelity struct {
	Name      string       `json:"name"`
	RVA       uint32       `json:"rva"`
	RawOffset uint32       `json:"raw_offset"`
	RawSize   uint32       `json:"raw_size"`
	State     SectionState `json:"state"`
	Missing   uint64       `json:"missing"`
	Unknown   uint64       `json:"unknown"`
	Assumed   uint64       `json:"assumed_zero"`
}

// BaseMethod says how the preferred base was found.
type BaseMethod string

// Ways to find the preferred base, from the strongest down.
const (
	BaseCache     BaseMethod = "file-cache" // read from the file's own header in the guest's cache
	BaseChecksum  BaseMethod = "checksum"   // the header's CheckSum matches the rebuilt file
	BaseLoader    BaseMethod = "loader"     // the guest's loader recorded it
	BaseFixed     BaseMethod = "fixed"      // the image cannot be relocated
	BaseHeader    BaseMethod = "header"     // the header in memory still says it
	BasePointers  BaseMethod = "pointers"   // addresses in the image that the loader does not relocate agree on it
	BaseSolved    BaseMethod = "solved"     // the only one for which the header's CheckSum is right, if all other bytes are the file's
	BaseName      BaseMethod = "name-hash"  // the linker derived it from the name of the file
	BaseDefault   BaseMethod = "default"    // the default of the linker that made the file
	BaseUndecided BaseMethod = "unknown"    // no base is likelier than another: the actual base is left in place
)

// BaseFidelity records the preferred base.
type BaseFidelity struct {
	Actual    uint64     `json:"actual"`
	Preferred uint64     `json:"preferred"`
	Method    BaseMethod `json:"method"`
	Proven    bool       `json:"proven"`     // certain, not only likely; a loader's record counts as certain although a program can forge it
	Evidence  int        `json:"evidence"`   // independent facts that agree on it: pointers, for BasePointers
	Tried     int        `json:"candidates"` // how many were considered
}

// RelocationFidelity counts relocations by what became of them.
type RelocationFidelity struct {
	Blocks      int  `json:"blocks"`
	Undone      int  `json:"undone"`
	Absent      int  `json:"absent"`      // of words that are not present or not part of the file
	Partial     int  `json:"partial"`     // of words that are present in part
	Guessed     int  `json:"guessed"`     // undone without the table, which is not present
	Invalid     int  `json:"invalid"`     // outside the image
	Unsupported int  `json:"unsupported"` // of types for other processors
	Truncated   bool `json:"truncated"`   // the table ends in a block that makes no sense
	Dynamic     int  `json:"dynamic"`     // dynamic value relocations undone
}

// ImportFidelity counts import address table slots by what became of them.
type ImportFidelity struct {
	Modules    int  `json:"modules"`
	Restored   int  `json:"restored"`      // from the import name table
	Resolved   int  `json:"resolved"`      // from the exports of loaded modules
	Bound      int  `json:"bound"`         // slots of modules bound at build time
	Delay      int  `json:"delay"`         // delay-load slots set back to their thunks
	Unresolved int  `json:"unresolved"`    // left as they are
	LostNames  int  `json:"lost_names"`    // names, or tables of them, on pages that are not present
	Runtime    int  `json:"pseudo_relocs"` // words relocated by the program's own start code, undone
	Invalid    bool `json:"invalid"`       // the tables contradict themselves
}

// LoadConfigFidelity records what the loader wrote through the load configuration.
type LoadConfigFidelity struct {
	Cookie        bool `json:"cookie"`         // security cookie set back to its default
	GuardPointers int  `json:"guard_pointers"` // set back to the image's own functions
	GuardUnknown  int  `json:"guard_unknown"`  // left as they are
}

// CheckSumFidelity compares the header's CheckSum with the rebuilt file.
type CheckSumFidelity struct {
	Header   uint32 `json:"header"`
	Computed uint32 `json:"computed"`
	Checked  bool   `json:"checked"` // false when the header has none or bytes are missing
	Matches  bool   `json:"matches"`
}

// NeverMapped names the parts of the file that are in no mapping of it as an image.
type NeverMapped struct {
	Certificate    Range  `json:"certificate"`  // file offsets; empty if there is none
	SymbolTable    uint32 `json:"symbol_table"` // file offset; 0 if there is none
	OverlayKnown   bool   `json:"overlay_known"`
	OverlayAtLeast uint64 `json:"overlay_at_least"` // bytes beyond the last section that headers prove; 0 proves nothing
}

// HeaderSource says where the headers, and with them the section layout, came from.
type HeaderSource string

// Sources of the layout.
const (
	HeadersMemory   HeaderSource = "memory"         // the headers of the mapped image
	HeadersShared   HeaderSource = "section page"   // the section's own page, because the process has changed its copy
	HeadersCache    HeaderSource = "file-cache"     // the file's own headers in the guest's cache, because those in memory are unusable
	HeadersLayout   HeaderSource = "section object" // the subsections of the section object, because the headers are wiped or forged
	HeadersAnalysis HeaderSource = "analysis"       // nothing but the bytes themselves
)

// own reports whether the headers are the file's own and not made up.
func (h HeaderSource) own() bool {
	return h == HeadersMemory || h == HeadersShared || h == HeadersCache
}

// Conflict is a place where two sources of the same file disagree: because of a hook, a
// patch or a forgery.
type Conflict struct {
	Range          // file offsets
	RVA     uint64 `json:"rva"`
	Section string `json:"section"`
	Code    bool   `json:"code"`   // in an executable section
	Source  string `json:"source"` // that disagrees with the mapping: "prototype" for the section's own page, "file-cache"
	Memory  string `json:"memory"` // the first bytes of the mapping there, in hexadecimal
	File    string `json:"file"`   // the source's first bytes there, in hexadecimal
}

// Fidelity is the record that goes with a rebuilt file: what the file is made of, and how
// far it can be trusted to be the file that was loaded.
type Fidelity struct {
	Name        string             `json:"name"`
	Headers     HeaderSource       `json:"headers"`
	MappedSize  uint64             `json:"mapped_size"` // bytes
	FileSize    uint64             `json:"file_size"`   // bytes, without what was never mapped beyond the last section
	Bytes       ByteCounts         `json:"bytes"`
	Sections    []SectionFidelity  `json:"sections"`
	Base        BaseFidelity       `json:"base"`
	Relocations RelocationFidelity `json:"relocations"`
	Imports     ImportFidelity     `json:"imports"`
	LoadConfig  LoadConfigFidelity `json:"load_config"`
	CheckSum    CheckSumFidelity   `json:"checksum"`
	NeverMapped NeverMapped        `json:"never_mapped"`
	DotNet      bool               `json:"dotnet"`
	Gaps        []Gap              `json:"gaps"`         // ascending by offset, not overlapping
	MissingRVAs []Range            `json:"missing_rvas"` // runs of pages that are not present
	Conflicts   []Conflict         `json:"conflicts,omitempty"`
	MemoryOnly  []Range            `json:"memory_only,omitempty"` // RVAs of executable pages whose bytes in memory are not in the rebuilt file
	Signatures  []SignatureSupport `json:"signatures"`
	Notes       []string           `json:"notes,omitempty"`

	baseField Range  // where the header says the base, in the file
	writable  uint64 // bytes of writable sections that may have been written
}

// Coverage returns the share of the rebuilt file whose bytes are known, between 0 and 1.
// Bytes that were never mapped and are assumed to be zeros count as known. An overlay that
// is not in memory is not counted at all.
func (f *Fidelity) Coverage() float64 {
	if f.FileSize == 0 {
		return 0
	}
	size := f.FileSize - min(f.Bytes.Overlay, f.FileSize)
	lost := min(f.Bytes.Missing+f.Bytes.Unknown, size)
	return float64(size-lost) / float64(max(size, 1))
}

// Complete reports whether the rebuilt file has every byte that the image has. Only then
// may a scan call it clean. It does not say that the file equals the one on disk; see
// Exact.
func (f *Fidelity) Complete() bool { return f.Bytes.Missing == 0 && f.Headers != HeadersAnalysis }

// Exact reports whether, as far as memory can show, the rebuilt file equals the file up to
// its overlay: nothing is missing or unknown, the base is proven, and no writable byte is
// in doubt.
func (f *Fidelity) Exact() bool {
	if f.CheckSum.Matches {
		return true
	}
	return f.Complete() && f.Bytes.Unknown == 0 && f.writable == 0 && f.Base.Proven
}

// baseSettled reports whether the content of the sections does not depend on an unproven
// base.
func (f *Fidelity) baseSettled() bool {
	return f.Base.Proven || f.Relocations.Undone == 0
}

// Known reports whether n bytes of the rebuilt file, from offset off on, are the file's own
// as far as memory can show: none of them is missing or unknown. Bytes that were never
// mapped and are assumed to be zeros count as known. If the base is not proven, relocated
// words are only as likely to be right as the base is.
func (f *Fidelity) Known(off, n uint64) bool {
	if n > f.FileSize || off > f.FileSize-n {
		return false
	}
	if !f.Base.Proven && off < f.baseField.End && off+n > f.baseField.Start {
		return false
	}
	i, _ := slices.BinarySearchFunc(f.Gaps, off, func(g Gap, at uint64) int {
		if g.End <= at {
			return -1
		}
		return 1
	})
	for ; i < len(f.Gaps) && f.Gaps[i].Start < off+n; i++ {
		if f.Gaps[i].Cause != CauseUnmapped {
			return false
		}
	}
	return true
}

// Compact returns a copy of the record for output, with at most n gaps, n runs of missing
// pages and n conflicts. The counts remain those of the whole file.
func (f *Fidelity) Compact(n int) *Fidelity {
	c := *f
	c.Gaps = f.Gaps[:min(n, len(f.Gaps))]
	c.MissingRVAs = f.MissingRVAs[:min(n, len(f.MissingRVAs))]
	c.Conflicts = f.Conflicts[:min(n, len(f.Conflicts))]
	if left := len(f.Gaps) - len(c.Gaps); left > 0 {
		c.Notes = append(slices.Clip(slices.Clone(f.Notes)), fmt.Sprintf("%d more gaps are not listed", left))
	}
	return &c
}
