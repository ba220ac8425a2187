package report

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"vmav.dev/vmav/internal/verdict"
)

// Address is a 64-bit address or size of the guest. In JSON it is a string, "0x…":
// numbers above 2^53 do not survive many readers.
type Address uint64

// MarshalText implements encoding.TextMarshaler.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Address) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 0, 64)
	*a = Address(v)
	return err
}

func (a Address) String() string { return "0x" + strconv.FormatUint(uint64(a), 16) }

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
	Outcome   string          `json:"outcome"`
	Evidence  []Exhibit       `json:"evidence,omitempty"`
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

// ScanError is something that could not be read or scanned.
type ScanError struct {
	What  string `json:"what"`
	Error string `json:"error"`
}

// Timing splits the time of one domain's scan, in seconds.
type Timing struct {
	Locate    float64 `json:"locate"`
	Enumerate float64 `json:"enumerate"`
	Rebuild   float64 `json:"rebuild"` // copying and rebuilding, summed over the workers
	Scan      float64 `json:"scan"`    // in the engine, summed over the workers
	Total     float64 `json:"total"`
}

// DomainScan is the result for one domain.
type DomainScan struct {
	Name      string      `json:"name"`
	UUID      string      `json:"uuid,omitempty"`
	State     string      `json:"state"`
	Status    string      `json:"status"`           // "scanned", "incomplete", "skipped", "failed"
	Reason    string      `json:"reason,omitempty"` // why it is skipped or failed, or ended before its end
	Build     string      `json:"build,omitempty"`
	Profile   string      `json:"profile,omitempty"` // GUID and age; ProfileInferred, ProfileMissing
	Source    string      `json:"source,omitempty"`
	Processes int         `json:"processes"`
	Ended     int         `json:"ended"` // of them, ended before all of it was read
	Images    int         `json:"images"`
	Unchanged int         `json:"unchanged"` // of them, recognised as what was rebuilt and scanned before
	Files     int         `json:"files"`     // distinct rebuilt files that the engine saw
	Bytes     uint64      `json:"bytes"`     // that the engine saw
	Regions   int         `json:"regions"`   // of executable memory outside of files
	Partial   int         `json:"partial"`   // images scanned with pages missing, above the limit
	PageIns   int         `json:"page_ins"`  // pages that the guest was made to read in
	Findings  []Finding   `json:"findings"`
	Errors    []ScanError `json:"errors"`
	Kills     []*Kill     `json:"kills,omitempty"`   // one for each process that was to be killed
	Actions   []*Act      `json:"actions,omitempty"` // what else was to be done to it
	Timing    Timing      `json:"timing"`
	Resumed   bool        `json:"resumed,omitempty"` // the result of a run that was interrupted

	// Where no profile fits the build: the PDB, GUID and age that one is missing for, the
	// build whose offsets were used in its place, and what was not used because it could
	// not be proven.
	Missing      string   `json:"missing,omitempty"`
	InferredFrom string   `json:"inferred_from,omitempty"`
	Unproven     []string `json:"unproven,omitempty"`
}

// MaxErrors bounds the errors of a DomainScan: what one hostile guest can fill it with.
const MaxErrors = 10000

// Fail notes something that could not be read or done.
func (d *DomainScan) Fail(what string, err error) {
	if len(d.Errors) < MaxErrors {
		d.Errors = append(d.Errors, ScanError{What: what, Error: err.Error()})
	}
}

// What a DomainScan can have for a profile beside its identity.
const (
	ProfileInferred = "inferred"
	ProfileMissing  = "missing"
)

// Status of a DomainScan.
const (
	StatusScanned    = "scanned"    // all was read
	StatusIncomplete = "incomplete" // something was not: never clean
	StatusSkipped    = "skipped"    // not Windows, or not running
	StatusFailed     = "failed"     // nothing was scanned
)

// Engine says what scanned.
type Engine struct {
	Version  string     `json:"version"`
	Database string     `json:"database,omitempty"`
	Built    *time.Time `json:"built,omitempty"`
	Private  bool       `json:"private"`
}

// Scan is the result of one `vmav scan`.
type Scan struct {
	Engine  Engine       `json:"engine"`
	Domains []DomainScan `json:"domains"`
	Summary Summary      `json:"summary"`
}

// Summary adds the domains up.
type Summary struct {
	Domains    int     `json:"domains"`
	Scanned    int     `json:"scanned"`
	Incomplete int     `json:"incomplete"`
	Skipped    int     `json:"skipped"`
	Failed     int     `json:"failed"`
	Processes  int     `json:"processes"`
	Ended      int     `json:"ended"`
	Images     int     `json:"images"`
	Findings   int     `json:"findings"`
	Errors     int     `json:"errors"`
	Seconds    float64 `json:"seconds"`
}

// Summarise fills the summary from the domains.
func (s *Scan) Summarise(took time.Duration) {
	s.Summary = Summary{Domains: len(s.Domains), Seconds: took.Seconds()}
	for _, d := range s.Domains {
		switch d.Status {
		case StatusScanned:
			s.Summary.Scanned++
		case StatusIncomplete:
			s.Summary.Incomplete++
		case StatusSkipped:
			s.Summary.Skipped++
		case StatusFailed:
			s.Summary.Failed++
		}
		s.Summary.Processes += d.Processes
		s.Summary.Ended += d.Ended
		s.Summary.Images += d.Images
		s.Summary.Findings += len(d.Findings)
		s.Summary.Errors += len(d.Errors)
	}
}

// Complete tells whether each domain was looked at, whatever became of that.
func (s *Scan) Complete() bool {
	return !slices.ContainsFunc(s.Domains, func(d DomainScan) bool { return d.Status == StatusFailed })
}

// FindingColumns are the columns of the table of findings.
var FindingColumns = []Column[Finding]{
	{Title: "DOMAIN", Text: func(f Finding) string { return f.Domain }},
	{Title: "PID", Text: func(f Finding) string { return strconv.FormatUint(f.PID, 10) }, Right: true},
	{Title: "PROCESS", Text: func(f Finding) string { return f.Process }},
	{Title: "IMAGE", Text: func(f Finding) string { return f.Image }},
	{Title: "SIGNATURE", Text: func(f Finding) string { return f.Signature }},
	{Title: "FIDELITY", Text: func(f Finding) string { return f.Fidelity.String() }},
	{Title: "ACTION", Text: func(f Finding) string { return string(f.Action) }},
	{Title: "OUTCOME", Text: func(f Finding) string { return f.Outcome }},
}

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

// WriteScan writes a scan for people: a line like clamscan's for each finding and
// error, the findings as a table, the summary.
func WriteScan(w io.Writer, s *Scan, infectedOnly bool) error {
	p := printer{w: w}
	var all []Finding
	for _, d := range s.Domains {
		if d.Status == StatusSkipped && !infectedOnly {
			p.line("%s: skipped: %s", Escape(d.Name), Escape(d.Reason))
		}
		if d.Status == StatusFailed {
			p.line("%s: ERROR: %s", Escape(d.Name), Escape(d.Reason))
		}
		for _, f := range d.Findings {
			what := f.Signature
			if f.Detail != "" {
				what += " (" + f.Detail + ")"
			}
			p.line("%s: %s[%d]: %s: %s FOUND", Escape(d.Name), Escape(f.Process), f.PID, Escape(f.Image), Escape(what))
		}
		for _, e := range d.Errors {
			p.line("%s: %s: ERROR: %s", Escape(d.Name), Escape(e.What), Escape(e.Error))
		}
		if !infectedOnly && (d.Status == StatusScanned || d.Status == StatusIncomplete) {
			p.line("%s: %s: Windows %s, %d processes, %d images, %d distinct files, %d findings, %d errors", Escape(d.Name), d.Status,
				Escape(d.Build), d.Processes, d.Images, d.Files, len(d.Findings), len(d.Errors))
			if d.Profile == ProfileInferred {
				p.line("%s: profile: inferred from Windows %s: there is none for %s; vmav profile fetch %s gets it", Escape(d.Name),
					Escape(d.InferredFrom), Escape(d.Missing), Escape(d.Missing))
			}
		}
		all = append(all, d.Findings...)
	}
	if p.err != nil {
		return p.err
	}
	if len(all) > 0 {
		p.line("")
		if err := Rows(w, Table, all, FindingColumns); err != nil {
			return err
		}
	}
	if infectedOnly && len(all) == 0 {
		return p.err
	}
	sum := s.Summary
	p.line("")
	p.line("Engine:     %s", Escape(s.Engine.Version+databaseText(s.Engine)))
	p.line("Domains:    %d scanned, %d incomplete, %d skipped, %d failed", sum.Scanned, sum.Incomplete, sum.Skipped, sum.Failed)
	if sum.Ended == 0 {
		p.line("Processes:  %d", sum.Processes)
	} else {
		p.line("Processes:  %d, %d of them ended before all was read", sum.Processes, sum.Ended)
	}
	p.line("Images:     %d", sum.Images)
	p.line("Findings:   %d", sum.Findings)
	p.line("Errors:     %d", sum.Errors)
	p.line("Time:       %.1f s", sum.Seconds)
	if id := firstRecord(all); id != 0 {
		p.line("Recorded:   vmav history show %d explains the first finding", id)
	}
	return p.err
}

// firstRecord is the smallest ID of findings that have one, else 0.
func firstRecord(findings []Finding) (id int64) {
	for _, f := range findings {
		if f.ID != 0 && (id == 0 || f.ID < id) {
			id = f.ID
		}
	}
	return id
}

func databaseText(e Engine) string {
	if e.Built == nil {
		if e.Private {
			return ", private, signatures of unknown age"
		}
		return ", signatures of unknown age"
	}
	return fmt.Sprintf(", database %s of %s", e.Database, e.Built.Format(time.DateOnly))
}

// printer keeps the first error of many writes.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}
