package broker

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/worker/wire"
)

// laneServer answers the questions of one lane.
type laneServer struct {
	*job    // that is under way; nil for none
	window  []byte
	reqs    []source.Request
	answers []byte
	more    []byte    // rest of the last answer
	content []byte    // what has arrived of the next scan's or finding's content
	sum     hash.Hash // of content
}

func newLaneServer(window []byte) *laneServer {
	return &laneServer{window: window, sum: sha256.New()}
}

// forget drops what is kept for a job.
func (v *laneServer) forget() {
	v.job, v.more, v.content = nil, nil, nil
	v.sum.Reset()
}

// answer answers one question. The answer to the last question of a job comes with the
// job's result. answer returns an error if no worker of ours asks this.
func (v *laneServer) answer(q wire.Frame) (wire.Frame, *wire.Result, error) {
	if err := v.charge(q.Code); err != nil {
		return wire.Frame{}, nil, err
	}
	if q.Code != wire.AskMore {
		v.more = nil
	}
	if q.Code == wire.AskDone {
		r, err := v.finish(q)
		return wire.Frame{}, r, err
	}
	a, err := v.reply(q)
	return a, nil, err
}

func (v *laneServer) reply(q wire.Frame) (wire.Frame, error) {
	switch q.Code {
	case wire.AskRanges:
		return v.ranges()
	case wire.AskRead:
		return v.read(q)
	case wire.AskRegisters:
		regs, err := v.src.Registers(v.ctx)
		return v.document(regs, v.markFatal(err))
	case wire.AskProfile:
		return v.profile(q)
	case wire.AskNear:
		return v.neighbours(q)
	case wire.AskNearOpen:
		return v.neighbour(q)
	case wire.AskMore:
		return v.piece(nil), nil
	case wire.AskContent:
		return v.takeContent(q)
	case wire.AskScan:
		return v.scan(q)
	case wire.AskFound:
		return v.found(q)
	case wire.AskProblems:
		return v.problems(q)
	case wire.AskProgress:
		return v.step(q)
	case wire.AskLooked:
		return v.looked(q)
	case wire.AskRecall, wire.AskRemember, wire.AskClean:
		return v.remembered(q)
	case wire.AskPageIn, wire.AskCancel, wire.AskEvent:
		return v.act(q)
	}
	return wire.Frame{}, fmt.Errorf("a question of kind %d", q.Code)
}

// quota bounds how often a worker may ask questions that cost the broker, libvirt or QEMU
// more than they cost the worker. A scan asks most of them once. It asks for profiles as
// often as it tries near builds (introspect).
var quota = map[byte]int{wire.AskRanges: 1000, wire.AskRegisters: 100, wire.AskProfile: 100, wire.AskNear: 10, wire.AskNearOpen: 100, wire.AskRemember: 1 << 17}

func (j *job) charge(kind byte) error {
	most, limited := quota[kind]
	if !limited {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.charged[kind]++; j.charged[kind] > most {
		return fmt.Errorf("question %d more than %d times", kind, most)
	}
	return nil
}

// markFatal remembers an error after which no scan goes on. It returns the error.
func (j *job) markFatal(err error) error {
	if errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) || errors.Is(err, answer.ErrEngineGone) {
		j.mu.Lock()
		if j.fatal == nil {
			j.fatal = err
		}
		j.mu.Unlock()
	}
	return err
}

// document returns an answer in JSON, or the failure err.
func (v *laneServer) document(x any, err error) (wire.Frame, error) {
	if err == nil {
		var text []byte
		if text, err = json.Marshal(x); err == nil && len(text) <= len(v.window) {
			return wire.Frame{N: copy(v.window, text)}, nil
		}
		if err == nil {
			err = fmt.Errorf("an answer of %d bytes is too large", len(text))
		}
	}
	return wire.Failure(err), nil
}

// decode parses what a worker put into its window. It copies it first, because the worker
// can still change it.
func (v *laneServer) decode(q wire.Frame, x any) error {
	if err := json.Unmarshal(bytes.Clone(v.window[:q.N]), x); err != nil {
		return fmt.Errorf("what is not JSON: %w", err)
	}
	return nil
}

func (v *laneServer) ranges() (wire.Frame, error) {
	all := v.src.Ranges()
	if len(all) > len(v.window)/16 {
		return wire.Failure(fmt.Errorf("%d ranges of guest RAM are too many", len(all))), nil
	}
	b := v.window[:0]
	for _, r := range all {
		b = binary.LittleEndian.AppendUint64(b, r.Start)
		b = binary.LittleEndian.AppendUint64(b, r.Size)
	}
	return wire.Frame{N: len(b)}, nil
}

// read lets the source fill the window.
func (v *laneServer) read(q wire.Frame) (wire.Frame, error) {
	var err error
	if v.reqs, err = wire.ParseReads(q.Args, v.window, v.reqs); err != nil {
		return wire.Frame{}, err
	}
	n := 0
	for i := range v.reqs {
		n += len(v.reqs[i].P)
	}
	if err := v.markFatal(source.ReadBatch(v.src, v.reqs)); err != nil {
		return wire.Failure(err), nil
	}
	v.answers = v.answers[:0]
	for i := range v.reqs {
		v.answers = append(v.answers, wire.StatusOf(v.reqs[i].Err))
	}
	return wire.Frame{N: n, Args: v.answers}, nil
}
