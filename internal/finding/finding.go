package finding

import (
	"cmp"
	"fmt"
	"slices"

	"vmav.dev/vmav/internal/verdict"
)

// Fidelity is how far a rebuilt file is the file that was loaded, in short.
type Fidelity struct {
	Form     string  `json:"form"`     // FormFile or FormMemory: what was scanned
	Coverage float64 `json:"coverage"` // share of its bytes that are known, 0 to 1
	Exact    bool    `json:"exact"`    // the file itself, up to its overlay
	Base     string  `json:"base"`     // how its preferred base was found
	Missing  uint64  `json:"missing"`  // bytes whose pages were not present
	PagedIn  uint64  `json:"paged_in"` // bytes that the guest read in because it was asked to
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

// Signatures of findings that are not the engine's. They name what was seen, not who
// did it.
const (
	ModifiedCode    = "Vmav.Modified.Code"    // a process has changed its copy of code: an inline hook, a patch
	ModifiedHeaders = "Vmav.Modified.Headers" // a process has changed the headers of an image: hides it, or forges it
	ModifiedFile    = "Vmav.Modified.File"    // the code that runs is not the code of the file in the guest's cache
)

// Region says which memory a finding is in, where that is not a whole image.
type Region struct {
	Start      Address `json:"start"`
	End        Address `json:"end"` // exclusive
	Type       string  `json:"type"`
	Image      string  `json:"image,omitempty"` // of RegionImage and RegionMapped: the file
	Executable uint64  `json:"executable"`      // bytes that are executable
	PE         bool    `json:"pe"`              // it begins with the headers of an image that no loader has mapped
}

// Types of regions.
const (
	RegionPrivate = "private" // allocated by a process
	RegionMapped  = "mapped"  // a view of a section that is no image
	RegionImage   = "image"   // pages of an image that its file does not have
)

// Hashes name a rebuilt file beside its SHA-256, in hexadecimal. Empty ones could not be
// computed.
type Hashes struct {
	ImportHash   string        `json:"imphash,omitempty"`
	Authenticode string        `json:"authenticode_sha256,omitempty"`
	Cached       string        `json:"cached_sha256,omitempty"` // of the file itself, where the guest's cache holds all of it
	Sections     []SectionHash `json:"sections,omitempty"`
}

// SectionHash is the MD5 of a section's raw data and its size in bytes.
type SectionHash struct {
	Name string `json:"name"`
	Size uint64 `json:"size"`
	MD5  string `json:"md5"`
}

// Finding is a signature match on one rebuilt file or memory region, or an image that
// is not what its file is.
type Finding struct {
	ID        int64           `json:"id,omitempty"` // of its record in the history; 0 where it has none
	Kind      string          `json:"kind"`
	Domain    string          `json:"domain"`
	PID       uint64          `json:"pid"`
	Process   string          `json:"process"`
	Image     string          `json:"image"`          // as the process names it, or which memory it is
	File      string          `json:"file,omitempty"` // path of the file behind it as the guest's kernel has it: without a volume
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
	// Again says that an earlier scan of this guest by the same service recorded the finding,
	// and that nothing is done about it: nobody is told of it once more.
	Again bool `json:"-"`
}

// Facts are what a policy is told of a finding.
func (f *Finding) Facts() verdict.Finding {
	out := verdict.Finding{Kind: f.Kind, Signature: f.Signature, Image: f.File, SHA256: f.SHA256, Memory: f.Fidelity.Form == FormMemory,
		Coverage: f.Fidelity.Coverage, Exact: f.Fidelity.Exact}
	if f.Hashes != nil {
		out.Cached = f.Hashes.Cached
	}
	return out
}

// Exhibit is a part of the evidence of a finding, or why it could not be kept.
type Exhibit struct {
	Kind   string `json:"kind"`
	SHA256 string `json:"sha256,omitempty"` // of its content, which it is found by
	Size   uint64 `json:"size,omitempty"`   // of its content, in bytes
	Error  string `json:"error,omitempty"`  // nothing was kept
}

// Kinds of exhibits.
const (
	ExhibitScanned  = "scanned"  // what the engine saw: the rebuilt file, or memory
	ExhibitMemory   = "memory"   // the image as it was mapped, pages that were not present as zeros
	ExhibitFidelity = "fidelity" // the fidelity record of the rebuilt file, JSON
)

// Done tells whether what the verdict asks for is known to have happened.
func (f *Finding) Done() bool { return f.Verdict.Action == verdict.Report || f.Code.Done() }

// String is "exact", "memory" for what is no file, or how much of the file is there.
func (f Fidelity) String() string {
	if f.Form == FormMemory {
		return "memory"
	}
	if f.Exact {
		return "exact"
	}
	return fmt.Sprintf("%.1f %%", 100*f.Coverage)
}

// Sort orders findings by process, address and signature.
func Sort(all []Finding) {
	slices.SortFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Base, b.Base), cmp.Compare(a.Signature, b.Signature))
	})
}
