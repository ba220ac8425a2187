package finding

import (
	"cmp"
	"fmt"
	"slices"

	"vmav.dev/vmav/internal/verdict"
)

// Fidelity summarises how close a rebuilt file is to the file that was loaded.
type Fidelity struct {
	Form     string  `json:"form"`     // FormFile or FormMemory: what was scanned
	Coverage float64 `json:"coverage"` // share of its bytes that are known, 0 to 1
	Exact    bool    `json:"exact"`    // it equals the file, except for the file's overlay
	Base     string  `json:"base"`     // how its preferred base was found
	Missing  uint64  `json:"missing"`  // bytes whose pages were not present
	PagedIn  uint64  `json:"paged_in"` // bytes that the guest read in on request
}

// Forms of what the engine sees.
const (
	FormFile   = verdict.FormFile   // a rebuilt file
	FormMemory = verdict.FormMemory // the memory of a region, as it runs
)

// Kinds of findings.
const (
	KindSignature = verdict.KindSignature
	KindModified  = verdict.KindModified
)

// Signatures of findings that do not come from the engine. They name what was seen, not who
// did it.
const (
	ModifiedCode    = "Vmav.Modified.Code"    // a process has changed its copy of code: an inline hook, a patch
	ModifiedHeaders = "Vmav.Modified.Headers" // a process has changed the headers of an image, to hide or to forge it
	ModifiedFile    = "Vmav.Modified.File"    // the code that runs is not the code of the file in the guest's cache
)

// Region describes the memory that a finding is in, if that is not a whole image.
type Region struct {
	Start      Address `json:"start"`
	End        Address `json:"end"` // exclusive
	Type       string  `json:"type"`
	Image      string  `json:"image,omitempty"` // of RegionImage and RegionMapped: the file
	Executable uint64  `json:"executable"`      // bytes that are executable
	PE         bool    `json:"pe"`              // it begins with the headers of an image that was not mapped by a loader
}

// Types of regions.
const (
	RegionPrivate = "private" // allocated by a process
	RegionMapped  = "mapped"  // a view of a section that is not an image
	RegionImage   = "image"   // pages of an image that are not in its file
)

// Hashes identify a rebuilt file besides its SHA-256. They are hexadecimal. A hash that
// could not be computed is empty.
type Hashes struct {
	ImportHash   string        `json:"imphash,omitempty"`
	Authenticode string        `json:"authenticode_sha256,omitempty"`
	Cached       string        `json:"cached_sha256,omitempty"` // of the file itself, where the guest's cache holds all of it
	Sections     []SectionHash `json:"sections,omitempty"`
}

// SectionHash is the MD5 and the size in bytes of a section's raw data.
type SectionHash struct {
	Name string `json:"name"`
	Size uint64 `json:"size"`
	MD5  string `json:"md5"`
}

// Finding is a signature match in one rebuilt file or memory region, or an image that
// differs from its file.
type Finding struct {
	ID        int64           `json:"id,omitempty"` // of its record in the history; 0 if there is none
	Kind      string          `json:"kind"`
	Domain    string          `json:"domain"`
	PID       uint64          `json:"pid"`
	Process   string          `json:"process"`
	Image     string          `json:"image"`          // name that the process gives it, or a description of the memory
	File      string          `json:"file,omitempty"` // path of its file as the guest's kernel has it, without a volume
	Base      Address         `json:"base"`
	Size      uint64          `json:"size"` // bytes mapped
	Signature string          `json:"signature"`
	SHA256    string          `json:"sha256"` // of the rebuilt file, or of the memory that was scanned
	Hashes    *Hashes         `json:"hashes,omitempty"`
	Region    *Region         `json:"region,omitempty"`
	Detail    string          `json:"detail,omitempty"` // in words
	Fidelity  Fidelity        `json:"fidelity"`
	Subject   verdict.Subject `json:"subject"` // the process as the policy saw it
	Verdict   verdict.Verdict `json:"verdict"`
	Action    verdict.Action  `json:"action"` // what was done
	Outcome
	Evidence []Exhibit `json:"evidence,omitempty"`
	// Again says that an earlier scan of this guest by the same service has recorded the
	// finding, and that nothing is done about it. It is not reported again.
	Again bool `json:"-"`
}

// Facts returns what a policy sees of the finding.
func (f *Finding) Facts() verdict.Finding {
	out := verdict.Finding{Kind: f.Kind, Signature: f.Signature, Image: f.File, SHA256: f.SHA256, Memory: f.Fidelity.Form == FormMemory,
		Coverage: f.Fidelity.Coverage, Exact: f.Fidelity.Exact}
	if f.Hashes != nil {
		out.Cached = f.Hashes.Cached
	}
	return out
}

// Exhibit is one piece of content that was kept as evidence of a finding, or the reason why
// it could not be kept.
type Exhibit struct {
	Kind   string `json:"kind"`
	SHA256 string `json:"sha256,omitempty"` // of its content; the evidence store finds it by this
	Size   uint64 `json:"size,omitempty"`   // of its content, in bytes
	Error  string `json:"error,omitempty"`  // why nothing was kept; "" if it was
}

// Kinds of exhibits.
const (
	ExhibitScanned  = "scanned"  // what the engine saw: the rebuilt file, or memory
	ExhibitMemory   = "memory"   // the mapped image; pages that were not present are zeros
	ExhibitFidelity = "fidelity" // the fidelity record of the rebuilt file, JSON
)

// Done reports whether the action that the verdict asks for is known to have happened. A
// verdict that asks for a report only is always done.
func (f *Finding) Done() bool { return f.Verdict.Action == verdict.Report || f.Code.Done() }

// String returns "memory" if there is no file, "exact", or how much of the file is known in
// percent.
func (f Fidelity) String() string {
	if f.Form == FormMemory {
		return "memory"
	}
	if f.Exact {
		return "exact"
	}
	return fmt.Sprintf("%.1f %%", 100*f.Coverage)
}

// Sort sorts findings by process, address and signature.
func Sort(all []Finding) {
	slices.SortFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Base, b.Base), cmp.Compare(a.Signature, b.Signature))
	})
}
