package worker

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/source"
)

// served is what the broker keeps for one lane.
type served struct {
	*session // of the job under way
	window   []byte
	reqs     []source.Request
	answers  []byte
	more     []byte // what is left of an answer
	content  []byte // what has come of the next scan or finding
	sum      hash.Hash
}

func newServed(window []byte) *served {
	return &served{window: window, sum: sha256.New()}
}

// forget drops what is kept for a job.
func (v *served) forget() {
	v.session, v.more, v.content = nil, nil, nil
	v.sum.Reset()
}

// answer serves one question, of which the last one of a job comes with its result. An
// error means that no worker of ours would ask it.
func (v *served) answer(q frame) (frame, *result, error) {
	if err := v.charge(q.code); err != nil {
		return frame{}, nil, err
	}
	if q.code != askMore {
		v.more = nil
	}
	if q.code == askDone {
		r, err := v.finish(q)
		return frame{}, r, err
	}
	a, err := v.reply(q)
	return a, nil, err
}

func (v *served) reply(q frame) (frame, error) {
	switch q.code {
	case askRanges:
		return v.ranges()
	case askRead:
		return v.read(q)
	case askRegisters:
		regs, err := v.src.Registers(v.ctx)
		return v.document(regs, v.mark(err))
	case askProfile:
		return v.profile(q)
	case askNear:
		return v.neighbours(q)
	case askNearOpen:
		return v.neighbour(q)
	case askMore:
		return v.piece(nil), nil
	case askContent:
		return v.take(q)
	case askScan:
		return v.scan(q)
	case askFound:
		return v.found(q)
	case askProblems:
		return v.problems(q)
	case askProgress:
		return v.step(q)
	case askSeen:
		return v.seen(q)
	case askRecall, askRemember, askClean:
		return v.remembered(q)
	case askPageIn, askCancel, askEvent:
		return v.act(q)
	}
	return frame{}, fmt.Errorf("a question of kind %d", q.code)
}

// quota is how often a worker may ask what costs the broker, libvirt or QEMU more than
// it costs the worker. A sweep asks most of it once, for profiles as often as near builds
// are tried (introspect).
var quota = map[byte]int{askRanges: 1000, askRegisters: 100, askProfile: 100, askNear: 10, askNearOpen: 100, askRemember: 1 << 17}

func (s *session) charge(kind byte) error {
	most, limited := quota[kind]
	if !limited {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.charged[kind]++; s.charged[kind] > most {
		return fmt.Errorf("question %d more than %d times", kind, most)
	}
	return nil
}

// mark remembers an error that no sweep goes on after.
func (s *session) mark(err error) error {
	if errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) || errors.Is(err, clam.ErrEngineGone) {
		s.mu.Lock()
		if s.fatal == nil {
			s.fatal = err
		}
		s.mu.Unlock()
	}
	return err
}

// document is an answer in JSON.
func (v *served) document(x any, err error) (frame, error) {
	if err == nil {
		var text []byte
		if text, err = json.Marshal(x); err == nil && len(text) <= len(v.window) {
			return frame{n: copy(v.window, text)}, nil
		}
		if err == nil {
			err = fmt.Errorf("an answer of %d bytes is too large", len(text))
		}
	}
	return failure(err), nil
}

// decode reads what a worker put into its window. It is copied first: the worker can
// still change it.
func (v *served) decode(q frame, x any) error {
	if err := json.Unmarshal(bytes.Clone(v.window[:q.n]), x); err != nil {
		return fmt.Errorf("what is not JSON: %w", err)
	}
	return nil
}

// parseGreeting reads a question for a job: the protocol's version, and Landlock's.
func parseGreeting(q frame) (abi int, err error) {
	if len(q.args) != 5 || binary.LittleEndian.Uint32(q.args) != protocol {
		return 0, fmt.Errorf("a greeting of %d bytes in another protocol", len(q.args))
	}
	return int(q.args[4]), nil
}

func (v *served) ranges() (frame, error) {
	all := v.src.Ranges()
	if len(all) > len(v.window)/16 {
		return failure(fmt.Errorf("%d ranges of guest RAM are too many", len(all))), nil
	}
	b := v.window[:0]
	for _, r := range all {
		b = binary.LittleEndian.AppendUint64(b, r.Start)
		b = binary.LittleEndian.AppendUint64(b, r.Size)
	}
	return frame{n: len(b)}, nil
}

// read has the source fill the window itself.
func (v *served) read(q frame) (frame, error) {
	var err error
	if v.reqs, err = parseReads(q.args, v.window, v.reqs); err != nil {
		return frame{}, err
	}
	n := 0
	for i := range v.reqs {
		n += len(v.reqs[i].P)
	}
	if err := v.mark(source.ReadBatch(v.src, v.reqs)); err != nil {
		return failure(err), nil
	}
	v.answers = v.answers[:0]
	for i := range v.reqs {
		v.answers = append(v.answers, statusOf(v.reqs[i].Err))
	}
	return frame{n: n, args: v.answers}, nil
}
