package inside

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker/wire"
)

// profiles finds profiles through the broker, which sends their files. The files are parsed
// here. It implements winstruct.Finder.
type profiles struct{ lanes lanes }

// askWhole asks a question whose answer may come in pieces, and returns the whole answer.
func (ls lanes) askWhole(kind byte, args []byte) ([]byte, error) {
	l := <-ls
	defer func() { ls <- l }()
	f, err := l.Call(kind, 0, args)
	if err == nil {
		err = wire.ErrorOf(f)
	}
	if err != nil {
		return nil, err
	}
	if len(f.Args) != 4 {
		return nil, errors.New("the broker's answer has no size")
	}
	size := int(binary.LittleEndian.Uint32(f.Args))
	if size > wire.MaxAnswer {
		return nil, fmt.Errorf("the broker's answer of %d bytes is too large", size)
	}
	var out []byte
	for {
		out = append(out, l.Window[:f.N]...)
		if len(out) >= size {
			return out, nil
		}
		if f, err = l.Call(wire.AskMore, 0, nil); err == nil {
			err = wire.ErrorOf(f)
		}
		if err == nil && f.N == 0 {
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
	file, err := p.lanes.askWhole(wire.AskProfile, args)
	if err != nil {
		var remote *wire.RemoteError
		if errors.As(err, &remote) && errors.Is(remote.Cause, winstruct.ErrNoProfile) {
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

// neighbours also offers the profiles of near builds. It implements introspect.Neighbours.
type neighbours struct{ profiles }

// Near implements introspect.Neighbours. The name of an entry is its index in the list.
func (n neighbours) Near(version string) []winstruct.Entry {
	text, err := n.lanes.askWhole(wire.AskNear, []byte(version))
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
	file, err := n.lanes.askWhole(wire.AskNearOpen, []byte(e.Name))
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

// sendContent sends content piece by piece for the next question on the lane. It leaves the
// last piece, of up to last bytes, in the window for that question to take along, and
// returns its size.
func sendContent(l *wire.Lane, data []byte, last int) (n int, err error) {
	for len(data) > last {
		n := copy(l.Window, data)
		f, err := l.Call(wire.AskContent, n, nil)
		if err == nil {
			err = wire.ErrorOf(f)
		}
		if err != nil {
			return 0, err
		}
		data = data[n:]
	}
	return copy(l.Window, data), nil
}

// engine lets the broker's engine scan. It implements scan.Engine, scan.Memory and
// scan.Results. What the broker already knows of a content is not scanned again for this
// guest.
type engine struct {
	lanes  lanes
	local  scan.Results // what this scan remembers itself
	secret [32]byte

	mu    sync.Mutex
	known map[[32]byte]bool // contents that the broker had a result for
}

func newEngine(ls lanes) *engine {
	return &engine{lanes: ls, local: scan.NewCache().For(context.Background(), nil), known: make(map[[32]byte]bool)}
}

// Scan implements scan.Engine.
func (e *engine) Scan(_ context.Context, name string, data []byte) (answer.Result, error) {
	l := <-e.lanes
	defer func() { e.lanes <- l }()
	var got wire.Scanned
	n, err := sendContent(l, data, wire.WindowSize)
	if err == nil {
		args := binary.LittleEndian.AppendUint64(nil, uint64(len(data)))
		var f wire.Frame
		if f, err = l.Call(wire.AskScan, n, append(args, wire.Clip(name)...)); err == nil {
			err = wire.ErrorOf(f)
		}
		if err == nil {
			err = json.Unmarshal(l.Window[:f.N], &got)
		}
	}
	if err != nil {
		return answer.Result{}, err
	}
	if got.Known {
		e.mu.Lock()
		e.known[got.SHA256] = true
		e.mu.Unlock()
	}
	return got.Result, nil
}

// Result implements scan.Results.
func (e *engine) Result(ctx context.Context, sum [32]byte, do func() (answer.Result, error)) (answer.Result, bool, error) {
	res, fresh, err := e.local.Result(ctx, sum, do)
	if fresh && err == nil {
		e.mu.Lock()
		fresh = !e.known[sum]
		e.mu.Unlock()
	}
	return res, fresh, err
}
