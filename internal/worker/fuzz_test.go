package worker

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/window"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/winstruct"
)

// zeros is a guest of one MiB.
type zeros struct{}

func (zeros) ReadPhys(p []byte, addr uint64) error {
	if addr+uint64(len(p)) > 1<<20 {
		return &source.AccessError{Addr: addr, Size: len(p), Err: source.ErrHole}
	}
	clear(p)
	return nil
}
func (zeros) Ranges() []source.Range { return []source.Range{{Size: 1 << 20}} }
func (zeros) Registers(context.Context) ([]source.Registers, error) {
	return nil, source.ErrNoRegisters
}
func (zeros) Info() source.Info { return source.Info{Kind: "image", Name: "zeros"} }
func (zeros) Close() error      { return nil }

// packets cuts fuzzed bytes into packets: two bytes of length, then the packet.
func packets(data []byte) (out [][]byte) {
	for len(data) >= 2 {
		n := min(int(binary.LittleEndian.Uint16(data)), len(data)-2)
		out = append(out, data[2:2+n])
		data = data[2+n:]
	}
	return out
}

func packet(kind byte, n int, args ...byte) []byte {
	f := appendFrame(nil, frame{kind, n, args})
	return append(binary.LittleEndian.AppendUint16(nil, uint16(len(f))), f...)
}

// FuzzQuestions asks the broker whatever comes. It answers within bounds, or ends the
// worker; what it keeps is bounded, and no finding comes of an engine that found nothing.
func FuzzQuestions(f *testing.F) {
	size := binary.LittleEndian.AppendUint64(nil, 8)
	f.Add(packet(askJob, 0, protocol, 0, 0, 0, 7), []byte{})
	f.Add(packet(askRead, 0, appendRead(appendRead(nil, 4096, 4096), 1<<20, 1)...), []byte{})
	id, _ := json.Marshal(winstruct.BuiltIn().List()[0].Identity)
	f.Add(append(packet(askProfile, 0, id...), packet(askMore, 0)...), []byte{})
	f.Add(append(packet(askNear, 0, []byte("10.0.19041")...), packet(askNearOpen, 0, '3')...), []byte{})
	f.Add(append(packet(askContent, 8), packet(askScan, 0, size...)...), []byte("content!"))
	one, _ := json.Marshal(found{Finding: findingOf([]byte("content!"), "X")})
	f.Add(packet(askFound, len(one), make([]byte, 8)...), one)
	problems, _ := json.Marshal([]finding.Unread{{What: "a", Error: "b"}})
	f.Add(packet(askProblems, len(problems)), problems)
	done, _ := json.Marshal(&result{Scan: finding.Scan{Status: finding.StatusScanned}})
	f.Add(append(packet(askProgress, 0, 1, 0, 0, 0, 2, 0, 0, 0), packet(askDone, len(done))...), done)
	next := slices.Concat(packet(askDone, len(done)), packet(askJob, 0, protocol, 0, 0, 0, 7), packet(askContent, 8))
	f.Add(append(next, next...), done)
	seen := appendSeen(nil, fuzzed, sweep.ImageKey{Base: 1, Size: 2, Section: 3}, true)
	f.Add(packet(askSeen, len(seen)), seen)
	profiles := winstruct.BuiltIn()
	window := make([]byte, windowSize)
	f.Fuzz(func(t *testing.T, data, text []byte) {
		clear(window[:1<<16])
		copy(window, text)
		p := &process{jobs: make(chan task, 1), exited: make(chan struct{}), note: func(int) {}}
		var all []*session
		for range 2 {
			s := newSession(sweep.Target{Name: "fuzz", Source: zeros{}}, profiles, silent{}, sweep.NewCache().Session(context.Background(), nil),
				sweep.Options{Focus: []sweep.Focused{{ID: fuzzed}}, Seen: func(id introspect.Identity, _ sweep.ImageKey, _ bool) {
					if id != fuzzed {
						t.Fatalf("an image of %+v was seen", id)
					}
				}})
			s.ctx = context.Background()
			all = append(all, s)
		}
		job, err := all[1].job(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		p.task = &task{all[0], nil}
		p.jobs <- task{all[1], job}
		v := newServed(window)
		p.served = []*served{v}
		for _, b := range packets(data) {
			q, err := parseFrame(b)
			if err != nil || q.code == askJob && len(p.jobs) == 0 { // one that does not come would be waited for
				break
			}
			a, err := p.answer(v, q)
			if err != nil {
				break
			}
			if a.n < 0 || a.n > windowSize || headSize+len(a.args) > maxFrame {
				t.Fatalf("an answer of %d bytes, and %d in the window, to %v", len(a.args), a.n, q.code)
			}
			copy(window, text)
		}
		for _, s := range all {
			for _, f := range s.out.Findings {
				if f.Kind == finding.KindSignature {
					t.Fatalf("a finding of nothing: %+v", f)
				}
			}
			kept := 0
			if v.session == s {
				kept = len(v.content)
			}
			if !s.done && s.budget.Load()+int64(kept) != maxContent || len(s.out.Errors) > finding.MaxErrors || s.images > maxSeen+windowSize/seenSize {
				t.Fatalf("%d bytes of budget left with %d kept, %d errors", s.budget.Load(), kept, len(s.out.Errors))
			}
		}
	})
}

// fuzzed is the process that the fuzzed sweeps are about.
var fuzzed = introspect.Identity{EPROCESS: 0xffff800000001000, PID: 8, CreateTime: 1, DTB: 0x1000}

// FuzzAnswers answers a worker whatever comes. It gets results or errors, and nothing
// larger than what it asked for.
func FuzzAnswers(f *testing.F) {
	f.Add(packet(statusOK, 4096, 0), []byte{})
	f.Add(packet(statusGone, 0, []byte("gone")...), []byte{})
	f.Add(append(packet(statusOK, windowSize, 0xff, 0xff, 0xff, 0), packet(statusOK, 1)...), []byte("{}"))
	f.Add(append(packet(statusOK, 2, 2, 0, 0, 0), packet(statusOK, 2)...), []byte("[]"))
	shared := make([]byte, 64)
	window.Put(shared, []source.Shared{{Range: source.Range{Size: 4096}}})
	f.Add(packet(statusOK, 4, 0), shared)
	f.Fuzz(func(t *testing.T, data, text []byte) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[0])
		for _, p := range packets(data) {
			if unix.SetNonblock(pair[1], true) != nil || len(p) == 0 {
				break
			}
			if _, err := unix.Write(pair[1], p); err != nil {
				break
			}
		}
		if err := unix.Shutdown(pair[1], unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[1])
		ls := make(lanes, 1)
		ls <- newLane(pair[0], append(make([]byte, 0, windowSize), text[:min(len(text), windowSize)]...)[:windowSize])
		g := &guest{lanes: ls}
		buf := make([]byte, 4096)
		reqs := []source.Request{{Addr: 0, P: buf}}
		_ = g.ReadPhysBatch(reqs)
		if n := len(g.Ranges()); n > windowSize/16 {
			t.Fatalf("%d ranges", n)
		}
		_, _ = g.Registers(context.Background())
		if p, err := (profiles{ls}).Find(winstruct.Identity{}); err == nil && p == nil {
			t.Fatal("neither a profile nor an error")
		}
		for _, e := range (neighbours{profiles{ls}}).Near("10.0.1") {
			_, _ = (neighbours{profiles{ls}}).Open(e)
		}
		_, _ = newEngine(ls).Scan(context.Background(), "x", buf)
		if runs, err := window.Take(text); err == nil && 24*len(runs) > len(text) {
			t.Fatalf("%d runs of %d bytes", len(runs), len(text))
		}
		if len(ls) != 1 {
			t.Fatal("a lane was lost")
		}
	})
}
