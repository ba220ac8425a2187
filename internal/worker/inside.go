package worker

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/window"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker/sandbox"
)

// marker is the command by which a program knows that it is a worker. Its arguments are
// the number of lanes, and the limits.
const marker = "sandboxed-worker"

// firstLane is the descriptor of the first lane. Behind the last there is the window's,
// and guest memory's where the source shares it.
const firstLane = 3

// Inside tells whether a program's arguments make it a worker. It then calls Main and
// nothing else.
func Inside(args []string) bool { return len(args) >= 2 && args[1] == marker }

// Main is a worker from its start to its end. It returns the exit status; the error, for
// stderr, says why it is not 0.
func Main(args []string) (int, error) {
	ls, mapped, abi, err := enter(args)
	if err != nil {
		return exitNoSandbox, err
	}
	if err := work(ls, mapped, abi); err != nil {
		return exitFailed, err
	}
	return 0, nil
}

// Exit statuses of a worker beside 0. Go's runtime has 2 for itself.
const (
	exitFailed    = 1
	exitNoSandbox = 3
)

// enter opens the lanes, maps what is shared and closes all else. What it reads before is
// the broker's: numbers. mapped is nil where guest memory is not shared.
func enter(args []string) (_ lanes, mapped *window.Guest, abi int, err error) {
	var num [4]uint64
	if len(args) < 2+len(num) {
		return nil, nil, 0, errors.New("a worker is started by vmav itself")
	}
	for i := range num {
		if num[i], err = strconv.ParseUint(args[2+i], 10, 64); err != nil {
			return nil, nil, 0, fmt.Errorf("a worker's argument: %w", err)
		}
	}
	n := int(num[0])
	if n < 1 || n > maxLanes {
		return nil, nil, 0, fmt.Errorf("a worker with %d lanes", n)
	}
	w, err := window.Open(firstLane+n, n*windowSize)
	if err != nil {
		return nil, nil, 0, err
	}
	if num[3] != 0 {
		if mapped, err = mapGuest(firstLane+n+1, w.Bytes()); err != nil {
			return nil, nil, 0, err
		}
	}
	if err := unix.Close(firstLane + n); err != nil {
		return nil, nil, 0, err
	}
	if abi, err = sandbox.Enter(sandbox.Limits{Memory: num[1], Threads: num[2]}); err != nil {
		return nil, nil, 0, err
	}
	ls := make(lanes, n)
	for i := range n {
		ls <- newLane(firstLane+i, w.Bytes()[i*windowSize:(i+1)*windowSize:(i+1)*windowSize])
	}
	return ls, mapped, abi, nil
}

// mapGuest maps guest memory, and closes the descriptor: by the module's more can be done
// than to map it.
func mapGuest(fd int, mem []byte) (*window.Guest, error) {
	runs, err := window.Take(mem)
	if err != nil {
		return nil, err
	}
	g := window.Map(fd, runs)
	if err := unix.Close(fd); err != nil {
		return nil, fmt.Errorf("close guest memory: %w", err)
	}
	return g, nil
}

// inmate is a worker behind its door, with what it keeps from job to job.
type inmate struct {
	lanes  lanes
	mapped *window.Guest
	abi    int // of Landlock

	src        *source.Cache // of the guest; nil before the first job
	controlled bool          // it has pages read in
	guest      *introspect.Guest
}

// work does the broker's jobs, one after the other, until that ends the worker or is gone.
func work(ls lanes, mapped *window.Guest, abi int) error {
	w := &inmate{lanes: ls, mapped: mapped, abi: abi}
	for {
		j, err := w.next()
		if errors.Is(err, io.EOF) {
			return nil // nobody wants anything any more
		}
		if err != nil {
			return fmt.Errorf("ask for work: %w", err)
		}
		if err := w.do(j); err != nil {
			return err
		}
	}
}

// next waits for a job.
func (w *inmate) next() (*job, error) {
	j := new(job)
	hello := binary.LittleEndian.AppendUint32(nil, protocol)
	err := w.lanes.ask(askJob, nil, append(hello, byte(w.abi)), func(l *lane, f frame) error { return json.Unmarshal(l.window[:f.n], j) })
	return j, err
}

// do does a job and reports what came of it.
func (w *inmate) do(j *job) error {
	ls := w.lanes
	e, rep, seen := newEngine(ls), &reporter{lanes: ls, content: j.Content}, new(sights)
	e.secret = j.Secret
	finder := w.finder(j)
	t := w.target(j)
	opt := sweep.Options{PIDs: j.PIDs, Focus: j.Focus, Jobs: j.Jobs, MinCoverage: j.MinCoverage, Found: rep.found, Exhibits: j.Content,
		Progress: ls.progress(), Open: func(ctx context.Context) (*introspect.Guest, error) { return w.open(ctx, finder, j.At) }}
	if j.Seen {
		opt.Seen = seen.add
	}
	if j.PageIn != nil {
		opt.PageIn, opt.PageInOptions = true, j.PageIn.options()
	}
	var r result
	var ended error
	r.Scan, ended = sweep.Domain(context.Background(), t, finder, e, e, opt)
	if ended == nil {
		ended = rep.err
	}
	if ended != nil {
		r.Ended = clip(ended.Error())
	}
	if err := ls.problems(r.Scan.Errors); err != nil {
		return fmt.Errorf("report errors: %w", err)
	}
	if err := seen.report(ls); err != nil {
		return fmt.Errorf("report what was looked at: %w", err)
	}
	r.Scan.Findings, r.Scan.Errors = []finding.Finding{}, []finding.Unread{}
	text, err := json.Marshal(&r)
	if err == nil && len(text) > windowSize {
		err = fmt.Errorf("it has %d bytes, too many", len(text))
	}
	if err == nil {
		err = ls.ask(askDone, func(l *lane) int { return copy(l.window, text) }, nil, nil)
	}
	if err != nil {
		return fmt.Errorf("report the result: %w", err)
	}
	return nil
}

func (w *inmate) finder(j *job) winstruct.Finder {
	if j.Near {
		return neighbours{profiles{w.lanes}}
	}
	return profiles{w.lanes}
}

// target is the guest as a job's sweep sees it. No page that was read for another job is
// kept.
func (w *inmate) target(j *job) sweep.Target {
	if w.src == nil || w.controlled != j.Controlled {
		g := &guest{w.lanes, j.Info, w.mapped}
		var src source.Source = g
		if j.Controlled {
			src = controlled{g}
		}
		w.src, w.controlled, w.guest = source.NewCache(src, cachePages), j.Controlled, nil
	}
	w.src.Invalidate()
	return sweep.Target{Name: j.Name, UUID: j.UUID, State: j.State, Source: w.src}
}

// open is the guest. Its kernel is looked for once, and not at all where the broker knows
// where it is.
func (w *inmate) open(ctx context.Context, finder winstruct.Finder, at introspect.Place) (*introspect.Guest, error) {
	if w.guest == nil {
		g, err := introspect.OpenAt(ctx, w.src, finder, at)
		if err != nil {
			return nil, err
		}
		w.guest = g
	}
	w.guest.Refresh()
	return w.guest, nil
}

// progressPeriod is how often a worker tells how far it is: each time costs the broker and
// the worker a turn.
const progressPeriod = 20 * time.Millisecond

// progress is a sweep's Progress that tells the broker: of the first image and the last,
// and now and then between them.
func (ls lanes) progress() func(sweep.Progress) {
	var last atomic.Int64
	return func(p sweep.Progress) {
		now, before := time.Now().UnixNano(), last.Load()
		if p.Done < p.Total && (now-before < int64(progressPeriod) || !last.CompareAndSwap(before, now)) {
			return
		}
		args := binary.LittleEndian.AppendUint32(nil, uint32(p.Done))
		args = binary.LittleEndian.AppendUint32(args, uint32(p.Total))
		// What comes next on a broken lane says so, too.
		_ = ls.ask(askProgress, nil, args, nil)
	}
}
