package scan

import (
	"context"
	"time"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// Scanner scans guests. InProcess is one, package worker/broker has the other.
type Scanner interface {
	// Scan scans a guest. The result says what became of the guest, and has neither
	// findings nor errors: on was told of these. The error is that of an interruption, of
	// a guest that is gone or of an engine that is gone; what was found until then was told
	// of. When Scan returns, nobody calls on any more.
	Scan(ctx context.Context, t Target, r Request, on Events) (finding.Scan, error)
}

// Kept is a Scanner that keeps something for one guest between short scans of it. Its
// owner calls Close, when no scan is under way and none comes.
type Kept interface {
	Scanner
	Close()
}

// Target is the guest to scan. The caller owns the source and keeps it open.
type Target struct {
	Name, UUID string
	State      string // of the domain: "running", "paused"; StateImage for a file
	Source     source.Source
	Domain     Domain // as libvirt knows it; nil where nobody knows it, as of a memory image
}

// Domain is what a scan asks of the domain that its guest runs in.
type Domain interface {
	Paused() bool // now
}

// StateImage is the state of a memory image.
const StateImage = "image"

// paused tells whether the guest is known to stand still.
func (t *Target) paused() bool {
	return t.State == StateImage || t.Domain != nil && t.Domain.Paused()
}

// Request says what to scan of a guest, and how far. It is data, which means the same to
// a scanner in another process.
type Request struct {
	PIDs        []uint64         // only these; none for all processes and the drivers
	Focus       []Focused        // these processes, and what is new in them; nil for everything
	Jobs        int              // images in work at once; 0 for DefaultJobs
	MinCoverage float64          // share of a file's bytes, 0 to 1, below which it counts as unread
	Content     bool             // findings come with what they were found in
	Looked      bool             // Events.Looked is wanted
	PageIn      *PageIn          // has the guest read in pages of mapped images that are in no memory; nil for not
	At          introspect.Place // of the guest's kernel where it was found before; zero to search for it
}

// Defaults of a Request.
const (
	DefaultJobs = 2
	// DefaultMinCoverage is the coverage that a scan should have: Windows trims the pages
	// that programs do not use, so that no running system has all of its images in memory,
	// but of a file that is mostly missing nothing can be said.
	DefaultMinCoverage = 0.5
)

// PageIn bounds what is asked of one guest. Zeros stand for the defaults of package pagein.
type PageIn struct {
	Pages        int           // in all
	ProcessPages int           // by faults of one process
	Wait         time.Duration // for a process that does not run
	Time         time.Duration // in all
}

// Events is told of a scan as it goes on. Its methods are called by several goroutines at
// once.
type Events interface {
	// Found takes a finding over. The bytes of its content are the scanner's and valid
	// until Found returns.
	Found(ctx context.Context, f Found)
	// Looked is told of each image of a process that was looked at, and whether all of its
	// file was in memory and the engine read it.
	Looked(p introspect.Identity, image ImageKey, whole bool)
	// Unread is told of what could not be read or scanned.
	Unread(u finding.Unread)
	// Progress is told how far the scan is.
	Progress(p Progress)
}

// Found is a finding as it comes from a scan: nothing is decided about it yet.
type Found struct {
	Finding finding.Finding     // with its Subject
	Process *introspect.Process // that it is in; nil for the kernel
	Content Content
}

// Content is what something was found in. All of it may be empty where it was not asked
// for, or where what was found is known from an earlier scan.
type Content struct {
	Scanned  []byte       // what the engine saw: a rebuilt file, or memory
	Memory   []byte       // the image as it is mapped, absent pages as zeros; nil where Scanned is memory
	Fidelity *pe.Fidelity // of a rebuilt file, else nil
}

// Progress is how far a scan is.
type Progress struct {
	Domain   string
	Done     int // images
	Total    int // images
	Findings int
}

// Engine is what a scan needs of a scanning engine. It is called by several goroutines
// at once.
type Engine interface {
	Scan(ctx context.Context, name string, data []byte) (clam.Result, error)
}

// Means are what a Scanner scans with. They are safe for several scans at once.
type Means struct {
	Profiles winstruct.Finder
	Engine   Engine
	Memory   Memory // carries results from scan to scan
}

// InProcess scans in the calling process, with all of its rights.
type InProcess struct {
	Means
	Opener Opener // nil for introspect.OpenAt with the profiles
}

// Opener opens the guests that InProcess scans, for those who keep them between scans.
type Opener interface {
	// Open is the guest that a source has, whose kernel may be at a place. It reads what is
	// there now, and may be used until the next Open.
	Open(ctx context.Context, src source.Source, at introspect.Place) (*introspect.Guest, error)
}

func (p InProcess) open(ctx context.Context, t *Target, at introspect.Place) (*introspect.Guest, error) {
	if p.Opener != nil {
		return p.Opener.Open(ctx, t.Source, at)
	}
	return introspect.OpenAt(ctx, t.Source, p.Profiles, at)
}

// Close implements Kept: nothing is kept.
func (InProcess) Close() {}
