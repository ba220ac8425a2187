package finding

import (
	"slices"
	"time"
)

// Unread is something that could not be read, scanned or done. A scan that has any of them
// is never clean.
type Unread struct {
	What  string `json:"what"`
	Error string `json:"error"`
}

// Timing says how long the parts of one guest's scan took, in seconds.
type Timing struct {
	Locate    float64 `json:"locate"`    // to find the kernel
	Enumerate float64 `json:"enumerate"` // to list processes, images and drivers
	Rebuild   float64 `json:"rebuild"`   // to copy and rebuild, summed over all goroutines
	Scan      float64 `json:"scan"`      // in the engine, summed over all goroutines
	Total     float64 `json:"total"`
}

// Scan is the result of the scan of one guest.
type Scan struct {
	Name      string    `json:"name"`
	UUID      string    `json:"uuid,omitempty"`
	State     string    `json:"state"`
	Status    string    `json:"status"`           // "scanned", "incomplete", "skipped", "failed"
	Reason    string    `json:"reason,omitempty"` // why it was skipped, failed or broke off
	Build     string    `json:"build,omitempty"`
	Profile   string    `json:"profile,omitempty"` // GUID and age; ProfileInferred, ProfileMissing
	Source    string    `json:"source,omitempty"`
	Processes int       `json:"processes"`
	Ended     int       `json:"ended"` // processes that ended before they were read in full
	Images    int       `json:"images"`
	Unchanged int       `json:"unchanged"` // images that were recognised as ones scanned before
	Files     int       `json:"files"`     // distinct rebuilt files that the engine saw
	Bytes     uint64    `json:"bytes"`     // of these files
	Regions   int       `json:"regions"`   // of executable memory outside files
	Partial   int       `json:"partial"`   // images that were scanned with pages missing, above the minimum coverage
	PageIns   int       `json:"page_ins"`  // pages that the guest was made to read in
	Findings  []Finding `json:"findings"`
	Errors    []Unread  `json:"errors"`
	Kills     []*Kill   `json:"kills,omitempty"`   // one for each process that was to be killed
	Actions   []*Act    `json:"actions,omitempty"` // other actions on the guest
	Timing    Timing    `json:"timing"`
	Resumed   bool      `json:"resumed,omitempty"` // the result comes from a sweep that was interrupted

	// These are set if no profile fits the build: the PDB, GUID and age of the missing
	// profile, and the build whose offsets were used in its place. Unproven names what was
	// not used because it could not be proven, which can be something even with a profile.
	Missing      string   `json:"missing,omitempty"`
	InferredFrom string   `json:"inferred_from,omitempty"`
	Unproven     []string `json:"unproven,omitempty"`
}

// MaxErrors bounds the errors of a Scan, because a hostile guest can cause any number of
// them.
const MaxErrors = 10000

// Fail notes something that could not be read or done.
func (d *Scan) Fail(what string, err error) {
	if len(d.Errors) < MaxErrors {
		d.Errors = append(d.Errors, Unread{What: what, Error: err.Error()})
	}
}

// Values of Scan.Profile besides a profile's identity.
const (
	ProfileInferred = "inferred"
	ProfileMissing  = "missing"
)

// Values of Scan.Status.
const (
	StatusScanned    = "scanned"    // everything was read
	StatusIncomplete = "incomplete" // something was not read, so it is never clean
	StatusSkipped    = "skipped"    // not Windows, or not running
	StatusFailed     = "failed"     // nothing was scanned, although it should have been
)

// Engine identifies the engine that scanned.
type Engine struct {
	Version  string     `json:"version"`
	Database string     `json:"database,omitempty"`
	Built    *time.Time `json:"built,omitempty"` // when its signatures were made; nil if unknown
	Private  bool       `json:"private"`
}

// Sweep is the result of the scans of several guests, one after the other.
type Sweep struct {
	Engine  Engine  `json:"engine"`
	Domains []Scan  `json:"domains"`
	Summary Summary `json:"summary"`
}

// Summary adds up the results of all guests of a Sweep.
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

// Summarise fills the summary from the results of the guests. took is the duration of the
// sweep.
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

// Complete reports whether each guest was scanned or skipped, and none failed.
func (s *Sweep) Complete() bool {
	return !slices.ContainsFunc(s.Domains, func(d Scan) bool { return d.Status == StatusFailed })
}
