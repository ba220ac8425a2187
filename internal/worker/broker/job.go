package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker/wire"
)

// job is one scan as a worker does it, seen from the broker.
type job struct {
	target  scan.Target
	src     source.Source // the target's source, uncached, because a worker has its own cache
	means   scan.Means
	results scan.Results
	req     scan.Request
	on      scan.Events
	ctx     context.Context // ends with the job
	text    []byte          // as a worker gets it
	over    chan struct{}   // closed after the worker has reported the result
	budget  atomic.Int64    // bytes of content that may still be kept
	waiting sync.Mutex      // held while somebody waits for an event

	mu        sync.Mutex
	infected  map[[32]byte]string // signatures that the engine found in contents of this guest
	user      string              // user that the worker runs as; "" for the broker's own
	abi       int                 // version of Landlock
	taken     bool                // a sandboxed worker has taken the job
	control   source.Control      // of page-ins
	pageIns   int
	near      []winstruct.Entry // list that the worker was given
	reported  int               // bytes of findings and unread things
	found     int               // number of findings
	last      finding.Unread    // last thing that was reported
	looked    int               // number of images that were looked at
	overflown bool              // there were more findings than are kept
	progress  int
	charged   [wire.LastKind + 1]int // number of questions, by kind
	result    wire.Result
	done      bool
	fatal     error // error that ends any scan: the guest or the engine is gone
}

func newJob(t scan.Target, m scan.Means, results scan.Results, req scan.Request, on scan.Events) *job {
	j := &job{target: t, src: source.Uncached(t.Source), means: m, results: results, req: req, on: on,
		infected: make(map[[32]byte]string), over: make(chan struct{})}
	j.budget.Store(wire.MaxContent)
	return j
}

// encode sets the text of the job.
func (j *job) encode() (err error) {
	_, near := j.means.Profiles.(introspect.Neighbours)
	t := &j.target
	out := wire.Job{Name: t.Name, UUID: t.UUID, State: t.State, Info: j.src.Info(), Near: near, Secret: j.results.Secret(), Request: j.req}
	if j.req.PageIn != nil {
		_, out.Controlled = j.src.(source.Controller)
	}
	j.text, err = out.Encode()
	return err
}

// greeted notes what confines the worker that took the job.
func (j *job) greeted(user string, abi int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.taken, j.user, j.abi = true, user, abi
}

// unread reports something that could not be read.
func (j *job) unread(what string, err error) {
	j.on.Unread(finding.Unread{What: what, Error: err.Error()})
}

// conclude makes the result of the job. Nobody else uses the job any longer.
func (j *job) conclude(ctx context.Context, c *child) (finding.Scan, error) {
	if j.done {
		d := j.adoptedResult()
		if j.result.Ended == "" {
			return d, nil
		}
		if j.fatal != nil { // the error came through the broker, which knows its type
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
	if errors.Is(j.fatal, answer.ErrEngineGone) {
		return d, j.fatal
	}
	return d, nil
}

// adoptedResult returns the worker's result, without what is not for the worker to say.
func (j *job) adoptedResult() finding.Scan {
	d, own := j.result.Scan, scan.Empty(j.target)
	d.Name, d.UUID, d.State, d.Source = own.Name, own.UUID, own.State, own.Source
	d.Findings, d.Errors, d.Kills, d.Actions = own.Findings, own.Errors, nil, nil
	return d
}

// admit reports whether there is room for one more finding of size bytes. The first finding
// without room is an error of the scan.
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
