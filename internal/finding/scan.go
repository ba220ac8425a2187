package finding

import (
	"slices"
	"time"
)

// Unread is something that could not be read, scanned or done. What has any is never
// clean.
type Unread struct {
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

// Scan is the result of the scan of one guest.
type Scan struct {
	Name      string    `json:"name"`
	UUID      string    `json:"uuid,omitempty"`
	State     string    `json:"state"`
	Status    string    `json:"status"`           // "scanned", "incomplete", "skipped", "failed"
	Reason    string    `json:"reason,omitempty"` // why it is skipped or failed, or ended before its end
	Build     string    `json:"build,omitempty"`
	Profile   string    `json:"profile,omitempty"` // GUID and age; ProfileInferred, ProfileMissing
	Source    string    `json:"source,omitempty"`
	Processes int       `json:"processes"`
	Ended     int       `json:"ended"` // of them, ended before all of it was read
	Images    int       `json:"images"`
	Unchanged int       `json:"unchanged"` // of them, recognised as what was rebuilt and scanned before
	Files     int       `json:"files"`     // distinct rebuilt files that the engine saw
	Bytes     uint64    `json:"bytes"`     // that the engine saw
	Regions   int       `json:"regions"`   // of executable memory outside of files
	Partial   int       `json:"partial"`   // images scanned with pages missing, above the limit
	PageIns   int       `json:"page_ins"`  // pages that the guest was made to read in
	Findings  []Finding `json:"findings"`
	Errors    []Unread  `json:"errors"`
	Kills     []*Kill   `json:"kills,omitempty"`   // one for each process that was to be killed
	Actions   []*Act    `json:"actions,omitempty"` // what else was to be done to it
	Timing    Timing    `json:"timing"`
	Resumed   bool      `json:"resumed,omitempty"` // the result of a run that was interrupted

	// Where no profile fits the build: the PDB, GUID and age that one is missing for, the
	// build whose offsets were used in its place, and what was not used because it could
	// not be proven.
	Missing      string   `json:"missing,omitempty"`
	InferredFrom string   `json:"inferred_from,omitempty"`
	Unproven     []string `json:"unproven,omitempty"`
}

// MaxErrors bounds the errors of a Scan: what one hostile guest can fill it with.
const MaxErrors = 10000

// Fail notes something that could not be read or done.
func (d *Scan) Fail(what string, err error) {
	if len(d.Errors) < MaxErrors {
		d.Errors = append(d.Errors, Unread{What: what, Error: err.Error()})
	}
}

// What a Scan can have for a profile beside its identity.
const (
	ProfileInferred = "inferred"
	ProfileMissing  = "missing"
)

// Status of a Scan.
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

// Sweep is the result of the scans of several guests, one after the other.
type Sweep struct {
	Engine  Engine  `json:"engine"`
	Domains []Scan  `json:"domains"`
	Summary Summary `json:"summary"`
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
func (s *Sweep) Summarise(took time.Duration) {
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
func (s *Sweep) Complete() bool {
	return !slices.ContainsFunc(s.Domains, func(d Scan) bool { return d.Status == StatusFailed })
}
