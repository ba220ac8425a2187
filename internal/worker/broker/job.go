package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker/wire"
)

// job is one scan, seen from the broker.
type job struct {
	target  scan.Target
	src     source.Source // the target's, uncached: a worker has a cache of its own
	means   scan.Means
	results scan.Results
	req     scan.Request
	on      scan.Events
	ctx     context.Context // ends with the job
	over    chan struct{}   // closed when the worker has reported the result
	budget  atomic.Int64    // bytes of content that may still be kept
	waiting sync.Mutex      // held by who waits for an event

	mu        sync.Mutex
	infected  map[[32]byte]string // what the engine said of contents of this guest
	user      string              // that the worker runs as; "" for the broker's own
	abi       int                 // of Landlock
	taken     bool                // the job is, by a worker that is sandboxed
	control   source.Control      // of page-ins
	pageIns   int
	near      []winstruct.Entry // as the worker was told
	reported  int               // bytes
	found     int               // findings
	last      finding.Unread    // that was reported
	looked    int               // images
	overflown bool              // more findings than are kept
	progress  int
	charged   [wire.LastKind + 1]int // questions, by kind
	result    wire.Result
	done      bool
	fatal     error // what no scan goes on after: the guest or the engine is gone
}

func newJob(t scan.Target, m scan.Means, results scan.Results, req scan.Request, on scan.Events) *job {
	j := &job{target: t, src: source.Uncached(t.Source), means: m, results: results, req: req, on: on,
		infected: make(map[[32]byte]string), over: make(chan struct{})}
	j.budget.Store(wire.MaxContent)
	return j
}

// encode is the job as it is handed out.
func (j *job) encode() ([]byte, error) {
	_, near := j.means.Profiles.(introspect.Neighbours)
	t := &j.target
	out := wire.Job{Name: t.Name, UUID: t.UUID, State: t.State, Info: j.src.Info(), Near: near, Secret: j.results.Secret(), Request: j.req}
	if j.req.PageIn != nil {
		_, out.Controlled = j.src.(source.Controller)
	}
	return out.Encode()
}

// greeted notes whose rights the worker has that took the job.
func (j *job) greeted(user string, abi int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.taken, j.user, j.abi = true, user, abi
}

// unread tells of something that could not be read.
func (j *job) unread(what string, err error) {
	j.on.Unread(finding.Unread{What: what, Error: err.Error()})
}

// conclude makes the result of what came. Nobody else uses the job any more.
func (j *job) conclude(ctx context.Context, c *child) (finding.Scan, error) {
	if j.done {
		d := j.adoptedResult()
		if j.result.Ended == "" {
			return d, nil
		}
		if j.fatal != nil { // what ended it came through here
			return d, j.fatal
		}
		return d, &wire.RemoteError{Text: j.result.Ended}
	}
	why := c.endReason()
	d := scan.Empty(j.target)
	d.Status, d.Reason = finding.StatusIncomplete, why.Error()
	if j.progress == 0 && j.found == 0 {
		d.Status = finding.StatusFailed
	}
	if ctx.Err() != nil {
		return d, ctx.Err()
	}
	if d.Status == finding.StatusIncomplete {
		j.unread("worker", why)
	}
	if errors.Is(j.fatal, clam.ErrEngineGone) {
		return d, j.fatal
	}
	return d, nil
}

// adoptedResult is the worker's result, as far as it is for the worker to say.
func (j *job) adoptedResult() finding.Scan {
	d, own := j.result.Scan, scan.Empty(j.target)
	d.Name, d.UUID, d.State, d.Source = own.Name, own.UUID, own.State, own.Source
	d.Findings, d.Errors, d.Kills, d.Actions = own.Findings, own.Errors, nil, nil
	return d
}

// admit tells whether there is room for one more finding, of so many bytes. The first
// for which there is none is an error of the scan.
func (j *job) admit(f *finding.Finding, size int) bool {
	j.mu.Lock()
	if j.reported += size; j.reported <= wire.MaxReported && j.found < wire.MaxFindings {
		j.found++
		j.mu.Unlock()
		return true
	}
	first := !j.overflown
	j.overflown = true
	j.mu.Unlock()
	if first {
		j.unread("findings", fmt.Errorf("there are more than are kept, the first of them in process %d, %s", f.PID, wire.Clip(f.Signature)))
	}
	return false
}
