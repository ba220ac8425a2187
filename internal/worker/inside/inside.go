package inside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/window"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker/confine"
	"vmav.dev/vmav/internal/worker/wire"
)

// IsWorker reports whether a program's arguments make it a worker. If so, the program must
// call Main and do nothing else.
func IsWorker(args []string) bool { return len(args) >= 2 && args[1] == wire.Marker }

// Main runs a worker from its start to its end. It returns the exit status and, if that is
// not 0, an error for stderr that says why.
func Main(args []string) (int, error) {
	ls, mapped, abi, err := enter(args)
	if err != nil {
		return wire.ExitNoSandbox, err
	}
	if err := work(ls, mapped, abi); err != nil {
		return wire.ExitFailed, err
	}
	return 0, nil
}

// enter opens the lanes, maps what is shared, closes everything else and enters the
// sandbox. What it reads before that are numbers from the broker. mapped is nil if guest
// memory is not shared.
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
	if n < 1 || n > wire.MaxLanes {
		return nil, nil, 0, fmt.Errorf("a worker with %d lanes", n)
	}
	w, err := window.Open(wire.FirstLane+n, n*wire.WindowSize)
	if err != nil {
		return nil, nil, 0, err
	}
	if num[3] != 0 {
		if mapped, err = mapGuest(wire.FirstLane+n+1, w.Bytes()); err != nil {
			return nil, nil, 0, err
		}
	}
	if err := unix.Close(wire.FirstLane + n); err != nil {
		return nil, nil, 0, err
	}
	if abi, err = confine.Enter(confine.Limits{Memory: num[1], Threads: num[2]}); err != nil {
		return nil, nil, 0, err
	}
	ls := make(lanes, n)
	for i := range n {
		ls <- wire.NewLane(wire.FirstLane+i, w.Bytes()[i*wire.WindowSize:(i+1)*wire.WindowSize:(i+1)*wire.WindowSize])
	}
	return ls, mapped, abi, nil
}

// mapGuest maps guest memory and closes the descriptor, because the module's descriptor
// allows more than to map memory.
func mapGuest(fd int, mem []byte) (*window.Guest, error) {
	runs, err := window.DecodeRanges(mem)
	if err != nil {
		return nil, err
	}
	g := window.Map(fd, runs)
	if err := unix.Close(fd); err != nil {
		return nil, fmt.Errorf("close guest memory: %w", err)
	}
	return g, nil
}

// worker is this process in its sandbox, with what it keeps from job to job.
type worker struct {
	lanes  lanes
	mapped *window.Guest
	abi    int // version of Landlock

	profiles   winstruct.Finder // of the job
	src        *source.Cache    // of the guest; nil before the first job
	controlled bool             // src can ask for page-ins
	guest      *introspect.Guest
}

// work does one job after the other until the broker is gone.
func work(ls lanes, mapped *window.Guest, abi int) error {
	w := &worker{lanes: ls, mapped: mapped, abi: abi}
	for {
		j, err := w.next()
		if errors.Is(err, io.EOF) {
			return nil // there are no more jobs
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
func (w *worker) next() (*wire.Job, error) {
	j := new(wire.Job)
	err := w.lanes.ask(wire.AskJob, nil, wire.Greeting(w.abi), func(l *wire.Lane, f wire.Frame) error { return json.Unmarshal(l.Window[:f.N], j) })
	return j, err
}

// do does a job and reports the result.
func (w *worker) do(j *wire.Job) error {
	ls := w.lanes
	e, on := newEngine(ls), &events{lanes: ls}
	e.secret, on.content = j.Secret, j.Request.Content
	t := w.target(j)
	s := scan.InProcess{Means: scan.Means{Profiles: w.finder(j), Engine: e, Memory: e}, Opener: w}
	w.profiles = s.Profiles
	var r wire.Result
	var ended error
	r.Scan, ended = s.Scan(context.Background(), t, j.Request, on)
	if ended == nil {
		ended = on.err
	}
	if ended != nil {
		r.Ended = wire.Clip(ended.Error())
	}
	if err := on.flush(); err != nil {
		return err
	}
	text, err := json.Marshal(&r)
	if err == nil && len(text) > wire.WindowSize {
		err = fmt.Errorf("it has %d bytes, too many", len(text))
	}
	if err == nil {
		err = ls.ask(wire.AskDone, func(l *wire.Lane) int { return copy(l.Window, text) }, nil, nil)
	}
	if err != nil {
		return fmt.Errorf("report the result: %w", err)
	}
	return nil
}

func (w *worker) finder(j *wire.Job) winstruct.Finder {
	if j.Near {
		return neighbours{profiles{w.lanes}}
	}
	return profiles{w.lanes}
}

// cachePages bounds the page cache for single reads: 16 MiB.
const cachePages = 4096

// target returns the guest as a job's scan sees it. It drops all pages that were read for
// another job.
func (w *worker) target(j *wire.Job) scan.Target {
	if w.src == nil || w.controlled != j.Controlled {
		g := &remote{w.lanes, j.Info, w.mapped}
		var src source.Source = g
		if j.Controlled {
			src = controlled{g}
		}
		w.src, w.controlled, w.guest = source.NewCache(src, cachePages), j.Controlled, nil
	}
	w.src.Invalidate()
	return scan.Target{Name: j.Name, UUID: j.UUID, State: j.State, Source: w.src}
}

// Open implements scan.Opener. It searches for the guest's kernel only once, and not at all
// if the broker knows where it is.
func (w *worker) Open(ctx context.Context, src source.Source, at introspect.Place) (*introspect.Guest, error) {
	if w.guest == nil {
		g, err := introspect.OpenAt(ctx, src, w.profiles, at)
		if err != nil {
			return nil, err
		}
		w.guest = g
	}
	w.guest.Refresh()
	return w.guest, nil
}
