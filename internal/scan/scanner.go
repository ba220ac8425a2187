package scan

import (
	"context"
	"time"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// Scanner scans guests. It is implemented by InProcess and by package worker/broker.
type Scanner interface {
	// Scan scans a guest. The result says what became of the guest. It has neither findings
	// nor errors, because on was told of these. Scan returns an error if it was
	// interrupted, or if the guest or the engine is gone; on was told of everything found
	// until then. No method of on is called after Scan has returned.
	Scan(ctx context.Context, t Target, r Request, on Events) (finding.Scan, error)
}

// Kept is a Scanner that keeps something for one guest between short scans. Its owner calls
// Close after the last scan has ended.
type Kept interface {
	Scanner
	// Close releases what was kept.
	Close()
}

// Target is the guest to scan. The caller owns the source and keeps it open.
type Target struct {
	Name, UUID string
	State      string // of the domain, such as "running" or "paused"; StateImage for a file
	Source     source.Source
	Domain     Domain // the domain in libvirt; nil if there is none, as for a memory image
}

// Domain is what a scan asks of the domain that its guest runs in.
type Domain interface {
	// Paused reports whether the domain is paused now.
	Paused() bool
}

// StateImage is the state of a memory image.
const StateImage = "image"

// paused reports whether the guest is known to stand still.
func (t *Target) paused() bool {
	return t.State == StateImage || t.Domain != nil && t.Domain.Paused()
}

// Request says what to scan of a guest, and how. It is only data and means the same to a
// scanner in another process.
type Request struct {
	PIDs        []uint64         // scan only these; if there are none, all processes and the drivers
	Focus       []Focused        // scan only what is new in these processes; nil for everything
	Jobs        int              // images in work at once; 0 for DefaultJobs
	MinCoverage float64          // share of a file's bytes, 0 to 1; a file with less in memory counts as unread
	Content     bool             // findings come with the content that they were found in
	Looked      bool             // call Events.Looked
	PageIn      *PageIn          // make the guest read in pages of mapped images that are not in memory; nil for not
	At          introspect.Place // where the guest's kernel was found before; zero to search for it
}

// Defaults of a Request.
const (
	DefaultJobs = 2
	// DefaultMinCoverage is the coverage that a scan should have. Windows trims pages that
	// programs do not use, so no running system has all of its images in memory. But
	// nothing can be said of a file that is mostly missing.
	DefaultMinCoverage = 0.5
)

// PageIn bounds what is asked of one guest. Zeros stand for the defaults of package pagein.
type PageIn struct {
	Pages        int           // in the whole scan
	ProcessPages int           // by page faults in one process
	Wait         time.Duration // for a process that does not run
	Time         time.Duration // in the whole scan
}

// Events is told of a scan while it goes on. Several goroutines call its methods at once.
type Events interface {
	// Found takes over a finding. The bytes of its content belong to the scanner and are
	// valid until Found returns.
	Found(ctx context.Context, f Found)
	// Looked is told of each image of a process that was looked at. whole says that all of
	// its file was in memory and that the engine read it in full.
	Looked(p introspect.Identity, image ImageKey, whole bool)
	// Unread is told of something that could not be read or scanned.
	Unread(u finding.Unread)
	// Progress is told how far the scan is.
	Progress(p Progress)
}

// Found is a finding as it comes from a scan. Nothing is decided about it yet.
type Found struct {
	Finding finding.Finding     // with its Subject
	Process *introspect.Process // the process it is in; nil for the kernel
	Content Content
}

// Content is the bytes that something was found in. It may be empty if the request does not
// ask for it, or if the finding is known from an earlier scan.
type Content struct {
	Scanned  []byte       // what the engine saw: a rebuilt file, or memory
	Memory   []byte       // the mapped image, with absent pages as zeros; nil if Scanned is memory
	Fidelity *pe.Fidelity // of a rebuilt file; else nil
}

// Progress says how far a scan is.
type Progress struct {
	Domain   string
	Done     int // images
	Total    int // images
	Findings int
}

// Engine is what a scan needs of a scanning engine. Several goroutines call it at once.
type Engine interface {
	// Scan returns what the engine says of data. name describes the data in errors.
	Scan(ctx context.Context, name string, data []byte) (answer.Result, error)
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
	Opener Opener // nil to use introspect.OpenAt with the profiles
}

// Opener opens the guests that InProcess scans. It allows a caller to keep a guest between
// scans.
type Opener interface {
	// Open returns the guest in a source. Its kernel may be at the given place. The guest
	// reads present memory and may be used until the next Open.
	Open(ctx context.Context, src source.Source, at introspect.Place) (*introspect.Guest, error)
}

func (p InProcess) open(ctx context.Context, t *Target, at introspect.Place) (*introspect.Guest, error) {
	if p.Opener != nil {
		return p.Opener.Open(ctx, t.Source, at)
	}
	return introspect.OpenAt(ctx, t.Source, p.Profiles, at)
}

// Close implements Kept. It does nothing, because nothing is kept.
func (InProcess) Close() {}
