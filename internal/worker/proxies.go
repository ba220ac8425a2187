package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/winstruct"
)

// maxAnswer bounds what comes in several pieces: a profile's file, the list of profiles.
const maxAnswer = 64 << 20

// profiles finds profiles through the broker, which sends their files. They are parsed
// here. It implements winstruct.Finder.
type profiles struct{ lanes lanes }

// whole takes an answer with all its pieces.
func (ls lanes) whole(kind byte, args []byte) ([]byte, error) {
	l := <-ls
	defer func() { ls <- l }()
	f, err := l.call(kind, 0, args)
	if err == nil {
		err = errorOf(f)
	}
	if err != nil {
		return nil, err
	}
	if len(f.args) != 4 {
		return nil, errors.New("the broker's answer has no size")
	}
	size := int(binary.LittleEndian.Uint32(f.args))
	if size > maxAnswer {
		return nil, fmt.Errorf("the broker's answer of %d bytes is too large", size)
	}
	var out []byte
	for {
		out = append(out, l.window[:f.n]...)
		if len(out) >= size {
			return out, nil
		}
		if f, err = l.call(askMore, 0, nil); err == nil {
			err = errorOf(f)
		}
		if err == nil && f.n == 0 {
			err = errors.New("the broker's answer is cut off")
		}
		if err != nil {
			return nil, err
		}
	}
}

// Find implements winstruct.Finder.
func (p profiles) Find(id winstruct.Identity) (*winstruct.Profile, error) {
	args, err := json.Marshal(id)
	if err != nil {
		return nil, err
	}
	file, err := p.lanes.whole(askProfile, args)
	if err != nil {
		var remote *remoteError
		if errors.As(err, &remote) && remote.cause == winstruct.ErrNoProfile {
			return nil, &winstruct.MissingError{Identity: id}
		}
		return nil, err
	}
	got, err := winstruct.Load(bytes.NewReader(file))
	if err != nil {
		return nil, fmt.Errorf("load the profile of %s: %w", id, err)
	}
	if got.Key() != id.Key() {
		return nil, fmt.Errorf("the profile of %s holds %s", id, got.Identity)
	}
	return got, nil
}

// neighbours offers the profiles of near builds, too. It implements
// introspect.Neighbours.
type neighbours struct{ profiles }

// Near implements introspect.Neighbours. The name of an entry is its place in the list.
func (n neighbours) Near(version string) []winstruct.Entry {
	text, err := n.lanes.whole(askNear, []byte(version))
	if err != nil {
		return nil
	}
	var list []winstruct.Entry
	if json.Unmarshal(text, &list) != nil {
		return nil
	}
	return list
}

// Open implements introspect.Neighbours.
func (n neighbours) Open(e winstruct.Entry) (*winstruct.Profile, error) {
	file, err := n.lanes.whole(askNearOpen, []byte(e.Name))
	if err != nil {
		return nil, err
	}
	p, err := winstruct.Load(bytes.NewReader(file))
	if err != nil {
		return nil, fmt.Errorf("load the profile of %s: %w", e.Identity, err)
	}
	return p, nil
}

var _ introspect.Neighbours = neighbours{}

// put sends content, piece by piece, for the next question on the lane. What it leaves for
// that one to take along is in the window: up to last bytes.
func put(l *lane, data []byte, last int) (n int, err error) {
	for len(data) > last {
		n := copy(l.window, data)
		f, err := l.call(askContent, n, nil)
		if err == nil {
			err = errorOf(f)
		}
		if err != nil {
			return 0, err
		}
		data = data[n:]
	}
	return copy(l.window, data), nil
}

// engine has the broker's engine scan. It implements sweep.Scanner, sweep.Memory and sweep.Session:
// what the broker knows of a content need not have been scanned for this guest.
type engine struct {
	lanes  lanes
	local  sweep.Session // of this sweep
	secret [32]byte

	mu    sync.Mutex
	known map[[32]byte]bool // contents that the broker had a result of
}

func newEngine(ls lanes) *engine {
	return &engine{lanes: ls, local: sweep.NewCache().Session(context.Background(), nil), known: make(map[[32]byte]bool)}
}

// scanned is an answer to askScan.
type scanned struct {
	Result clam.Result
	SHA256 [32]byte // of what the broker got
	Known  bool     // the engine was not asked
}

// Scan implements sweep.Scanner.
func (e *engine) Scan(_ context.Context, name string, data []byte) (clam.Result, error) {
	l := <-e.lanes
	defer func() { e.lanes <- l }()
	var got scanned
	n, err := put(l, data, windowSize)
	if err == nil {
		args := binary.LittleEndian.AppendUint64(nil, uint64(len(data)))
		var f frame
		if f, err = l.call(askScan, n, append(args, clip(name)...)); err == nil {
			err = errorOf(f)
		}
		if err == nil {
			err = json.Unmarshal(l.window[:f.n], &got)
		}
	}
	if err != nil {
		return clam.Result{}, err
	}
	if got.Known {
		e.mu.Lock()
		e.known[got.SHA256] = true
		e.mu.Unlock()
	}
	return got.Result, nil
}

// Result implements sweep.Session.
func (e *engine) Result(ctx context.Context, sum [32]byte, do func() (clam.Result, error)) (clam.Result, bool, error) {
	res, fresh, err := e.local.Result(ctx, sum, do)
	if fresh && err == nil {
		e.mu.Lock()
		fresh = !e.known[sum]
		e.mu.Unlock()
	}
	return res, fresh, err
}

// found is a finding as a worker reports it. What is decided, done and seen of it is the
// broker's to fill in.
type found struct {
	Finding  finding.Finding
	Process  *introspect.Process // nil for the kernel
	Fidelity *pe.Fidelity        // of the exhibit
	Scanned  int                 // bytes of the content that the engine saw; the rest is the image as it is mapped
}

// reporter hands findings to the broker, which decides on them.
type reporter struct {
	lanes   lanes
	content bool // findings take along what they were found in
	mu      sync.Mutex
	err     error // the first finding that could not be reported
}

// found reports a finding; it is a sweep's Found.
func (r *reporter) found(_ context.Context, p *introspect.Process, f finding.Finding, x sweep.Exhibit) {
	if err := r.report(p, f, x); err != nil {
		r.mu.Lock()
		if r.err == nil {
			r.err = err
		}
		r.mu.Unlock()
	}
}

func (r *reporter) report(p *introspect.Process, f finding.Finding, x sweep.Exhibit) error {
	if !r.content {
		x = sweep.Exhibit{}
	}
	l := <-r.lanes
	defer func() { r.lanes <- l }()
	for _, part := range [][]byte{x.Scanned, x.Memory} {
		if _, err := put(l, part, 0); err != nil {
			return err
		}
	}
	text, err := json.Marshal(found{f, p, x.Fidelity, len(x.Scanned)})
	if err == nil && len(text) > windowSize { // the record of a file's conflicts can be long
		text, err = json.Marshal(found{f, p, nil, len(x.Scanned)})
	}
	if err != nil {
		return err
	}
	if len(text) > windowSize {
		return fmt.Errorf("report a finding of %d bytes: too large", len(text))
	}
	a, err := l.call(askFound, copy(l.window, text), binary.LittleEndian.AppendUint64(nil, uint64(len(x.Scanned)+len(x.Memory))))
	if err != nil {
		return err
	}
	return errorOf(a)
}

// problems sends what could not be read, as much at a time as fits.
func (ls lanes) problems(all []finding.Unread) error {
	for len(all) > 0 {
		var text []byte
		n := len(all)
		for ; ; n = (n + 1) / 2 {
			var err error
			if text, err = json.Marshal(all[:n]); err != nil {
				return err
			}
			if len(text) <= windowSize || n == 1 {
				break
			}
		}
		if len(text) > windowSize { // one alone: its text is a guest's
			one := finding.Unread{What: clip(all[0].What), Error: clip(all[0].Error)}
			all = append([]finding.Unread{one}, all[1:]...)
			continue
		}
		if err := ls.ask(askProblems, func(l *lane) int { return copy(l.window, text) }, nil, nil); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}
