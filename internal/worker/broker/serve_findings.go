package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/worker/wire"
)

// takeContent adds a piece to the content. It hashes a copy that the worker cannot reach,
// because what is remembered of a content must be true of that content.
func (v *laneServer) takeContent(q wire.Frame) (wire.Frame, error) {
	if v.budget.Add(-int64(q.N)) < 0 {
		v.budget.Add(int64(q.N))
		v.dropContent()
		return wire.Failure(errors.New("more content at once than is kept for one guest")), nil
	}
	at := len(v.content)
	v.content = append(v.content, v.window[:q.N]...)
	v.sum.Write(v.content[at:])
	return wire.Frame{}, nil
}

// wholeContent returns the content and its SHA-256. It fails if not all of the content has
// arrived.
func (v *laneServer) wholeContent(size uint64) ([]byte, [32]byte, error) {
	if size != uint64(len(v.content)) {
		return nil, [32]byte{}, fmt.Errorf("%d bytes of content where it says %d", len(v.content), size)
	}
	return v.content, [32]byte(v.sum.Sum(nil)), nil
}

// keptContent is how much room a lane keeps for its next content, in bytes.
const keptContent = 16 << 20

func (v *laneServer) dropContent() {
	v.budget.Add(int64(len(v.content)))
	v.sum.Reset()
	if v.content = v.content[:0]; cap(v.content) > keptContent {
		v.content = nil
	}
}

func (v *laneServer) scan(q wire.Frame) (wire.Frame, error) {
	defer v.dropContent()
	if len(q.Args) < 8 {
		return wire.Frame{}, errors.New("a scan without a size")
	}
	if a, err := v.takeContent(q); err != nil || a.Code != wire.StatusOK { // the question brings the last piece along
		return a, err
	}
	data, sum, err := v.wholeContent(binary.LittleEndian.Uint64(q.Args))
	if err != nil {
		return wire.Frame{}, err
	}
	name := wire.Clip(string(q.Args[8:]))
	res, fresh, err := v.results.Result(v.ctx, sum, func() (answer.Result, error) { return v.means.Engine.Scan(v.ctx, name, data) })
	if v.markFatal(err) != nil {
		return wire.Failure(err), nil
	}
	if res.Signature != "" {
		v.mu.Lock()
		v.infected[sum] = res.Signature
		v.mu.Unlock()
	}
	return v.document(&wire.Scanned{Result: res, SHA256: sum, Known: !fresh}, nil)
}

// found takes over a finding. The engine must have said a signature of this very content. A
// worker that reports another one has been taken over.
func (v *laneServer) found(q wire.Frame) (wire.Frame, error) {
	defer v.dropContent()
	if len(q.Args) != 8 {
		return wire.Frame{}, errors.New("a finding without the size of its content")
	}
	data, _, err := v.wholeContent(binary.LittleEndian.Uint64(q.Args))
	if err != nil {
		return wire.Frame{}, err
	}
	var x wire.Found
	if err := v.decode(q, &x); err != nil {
		return wire.Frame{}, err
	}
	if err := x.Check(); err != nil {
		return wire.Frame{}, err
	}
	f, content := x.Finding, scan.Content{Fidelity: x.Fidelity}
	if x.Scanned < 0 || x.Scanned > len(data) {
		return wire.Frame{}, fmt.Errorf("a finding in %d of %d bytes", x.Scanned, len(data))
	}
	if x.Scanned > 0 {
		content.Scanned = data[:x.Scanned:x.Scanned]
		if sum := sha256.Sum256(content.Scanned); f.SHA256 != hex.EncodeToString(sum[:]) {
			return wire.Frame{}, fmt.Errorf("a finding of %s with the content of %x", wire.Clip(f.SHA256), sum)
		}
	}
	if x.Scanned < len(data) {
		content.Memory = data[x.Scanned:]
	}
	f.Subject.Domain, f.Domain, f.PID, f.Process = v.target.Name, v.target.Name, f.Subject.PID, f.Subject.Name
	if f.Kind == finding.KindSignature && !v.engineSaid(&f) {
		return wire.Frame{}, fmt.Errorf("a finding of %q that the engine has not said", wire.Clip(f.Signature))
	}
	if !v.admit(&f, q.N) {
		return wire.Frame{}, nil
	}
	v.on.Found(v.ctx, scan.Found{Finding: f, Process: x.Process, Content: content})
	return wire.Frame{}, nil
}

func (j *job) engineSaid(f *finding.Finding) bool {
	sum, err := hex.DecodeString(f.SHA256)
	if err != nil || len(sum) != 32 {
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return f.Signature != "" && j.infected[[32]byte(sum)] == f.Signature
}

func (v *laneServer) problems(q wire.Frame) (wire.Frame, error) {
	var all []finding.Unread
	if err := v.decode(q, &all); err != nil {
		return wire.Frame{}, err
	}
	for _, u := range all {
		v.mu.Lock()
		if v.reported += len(u.What) + len(u.Error); v.reported > wire.MaxReported {
			u = finding.Unread{What: "errors", Error: "there are more than are kept"}
		}
		again := u == v.last
		v.last = u
		v.mu.Unlock()
		if !again {
			v.on.Unread(u)
		}
	}
	return wire.Frame{}, nil
}

func (v *laneServer) step(q wire.Frame) (wire.Frame, error) {
	if len(q.Args) != 8 {
		return wire.Frame{}, errors.New("progress without numbers")
	}
	p := scan.Progress{Domain: v.target.Name, Done: int(binary.LittleEndian.Uint32(q.Args)), Total: int(binary.LittleEndian.Uint32(q.Args[4:]))}
	v.mu.Lock()
	v.progress = max(v.progress, p.Done)
	v.mu.Unlock()
	v.on.Progress(p)
	return wire.Frame{}, nil
}

func (v *laneServer) finish(q wire.Frame) (*wire.Result, error) {
	r := new(wire.Result)
	if err := v.decode(q, r); err != nil {
		return nil, err
	}
	return r, r.Check()
}
