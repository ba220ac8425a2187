package worker

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/sweep"
)

// take adds a piece to the content. It is hashed here, from a copy that the worker
// cannot reach: what is remembered of a content must be of that content.
func (v *served) take(q frame) (frame, error) {
	if v.budget.Add(-int64(q.n)) < 0 {
		v.budget.Add(int64(q.n))
		v.drop()
		return failure(errors.New("more content at once than is kept for one guest")), nil
	}
	at := len(v.content)
	v.content = append(v.content, v.window[:q.n]...)
	v.sum.Write(v.content[at:])
	return frame{}, nil
}

// complete takes the content where all of it has come, with its SHA-256.
func (v *served) complete(size uint64) ([]byte, [32]byte, error) {
	if size != uint64(len(v.content)) {
		return nil, [32]byte{}, fmt.Errorf("%d bytes of content where it says %d", len(v.content), size)
	}
	return v.content, [32]byte(v.sum.Sum(nil)), nil
}

// keptContent is how much room a lane keeps for its next content, in bytes.
const keptContent = 16 << 20

func (v *served) drop() {
	v.budget.Add(int64(len(v.content)))
	v.sum.Reset()
	if v.content = v.content[:0]; cap(v.content) > keptContent {
		v.content = nil
	}
}

func (v *served) scan(q frame) (frame, error) {
	defer v.drop()
	if len(q.args) < 8 {
		return frame{}, errors.New("a scan without a size")
	}
	if a, err := v.take(q); err != nil || a.code != statusOK { // the last piece comes along
		return a, err
	}
	data, sum, err := v.complete(binary.LittleEndian.Uint64(q.args))
	if err != nil {
		return frame{}, err
	}
	name := clip(string(q.args[8:]))
	res, fresh, err := v.cache.Result(v.ctx, sum, func() (clam.Result, error) { return v.engine.Scan(v.ctx, name, data) })
	if v.mark(err) != nil {
		return failure(err), nil
	}
	if res.Signature != "" {
		v.mu.Lock()
		v.infected[sum] = res.Signature
		v.mu.Unlock()
	}
	return v.document(&scanned{Result: res, SHA256: sum, Known: !fresh}, nil)
}

// found decides on a finding. One of a signature must be what the engine said of that
// content: who reports another was taken over.
func (v *served) found(q frame) (frame, error) {
	defer v.drop()
	if len(q.args) != 8 {
		return frame{}, errors.New("a finding without the size of its content")
	}
	data, _, err := v.complete(binary.LittleEndian.Uint64(q.args))
	if err != nil {
		return frame{}, err
	}
	var x found
	if err := v.decode(q, &x); err != nil {
		return frame{}, err
	}
	if err := x.check(); err != nil {
		return frame{}, err
	}
	f, exhibit := x.Finding, sweep.Exhibit{Fidelity: x.Fidelity}
	if x.Scanned < 0 || x.Scanned > len(data) {
		return frame{}, fmt.Errorf("a finding in %d of %d bytes", x.Scanned, len(data))
	}
	if x.Scanned > 0 {
		exhibit.Scanned = data[:x.Scanned:x.Scanned]
		if sum := sha256.Sum256(exhibit.Scanned); f.SHA256 != hex.EncodeToString(sum[:]) {
			return frame{}, fmt.Errorf("a finding of %s with the content of %x", clip(f.SHA256), sum)
		}
	}
	if x.Scanned < len(data) {
		exhibit.Memory = data[x.Scanned:]
	}
	f.Subject.Domain, f.Domain, f.PID, f.Process = v.target.Name, v.target.Name, f.Subject.PID, f.Subject.Name
	if f.Kind == finding.KindSignature && !v.engineSaid(&f) {
		return frame{}, fmt.Errorf("a finding of %q that the engine has not said", clip(f.Signature))
	}
	if !v.admit(&f, q.n) {
		return frame{}, nil
	}
	if v.opt.Found != nil {
		v.opt.Found(v.ctx, x.Process, f, exhibit)
	} else {
		v.judge.Found(v.ctx, x.Process, f, exhibit)
	}
	return frame{}, nil
}

func (s *session) engineSaid(f *finding.Finding) bool {
	sum, err := hex.DecodeString(f.SHA256)
	if err != nil || len(sum) != 32 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.Signature != "" && s.infected[[32]byte(sum)] == f.Signature
}

// admit tells whether there is room for one more finding, of so many bytes. The first
// for which there is none is an error of the sweep.
func (s *session) admit(f *finding.Finding, size int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reported += size; s.reported <= maxReported && len(s.out.Findings) < maxFindings {
		return true
	}
	if !s.overflown {
		s.overflown = true
		s.out.Fail("findings", fmt.Errorf("there are more than are kept, the first of them in process %d, %s", f.PID, clip(f.Signature)))
	}
	return false
}

func (v *served) problems(q frame) (frame, error) {
	var all []finding.Unread
	if err := v.decode(q, &all); err != nil {
		return frame{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range all {
		if v.reported += len(e.What) + len(e.Error); v.reported > maxReported {
			e = finding.Unread{What: "errors", Error: "there are more than are kept"}
		}
		if len(v.out.Errors) < finding.MaxErrors && !slices.Contains(v.out.Errors[max(0, len(v.out.Errors)-1):], e) {
			v.out.Errors = append(v.out.Errors, e)
		}
	}
	return frame{}, nil
}

func (v *served) step(q frame) (frame, error) {
	if len(q.args) != 8 {
		return frame{}, errors.New("progress without numbers")
	}
	p := sweep.Progress{Domain: v.target.Name, Done: int(binary.LittleEndian.Uint32(q.args)), Total: int(binary.LittleEndian.Uint32(q.args[4:]))}
	v.mu.Lock()
	v.progress = max(v.progress, p.Done)
	p.Findings = len(v.out.Findings)
	v.mu.Unlock()
	if v.opt.Progress != nil {
		v.opt.Progress(p)
	}
	return frame{}, nil
}

func (v *served) finish(q frame) (*result, error) {
	r := new(result)
	if err := v.decode(q, r); err != nil {
		return nil, err
	}
	return r, r.check()
}
