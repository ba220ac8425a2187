package broker

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/sourcetest"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker/wire"
	"vmav.dev/vmav/internal/worker/wire/wiretest"
)

// zeros returns a guest of one MiB of zeros.
func zeros() source.Source { return sourcetest.New(make(sourcetest.Bytes, 1<<20), 1<<20) }

// findingOf is a finding of a signature in a content.
func findingOf(content []byte, signature string) finding.Finding {
	return finding.Finding{Kind: finding.KindSignature, Image: "it", Signature: signature, SHA256: fmt.Sprintf("%x", sha256.Sum256(content)),
		Fidelity: finding.Fidelity{Form: finding.FormFile, Coverage: 1}, Subject: verdict.Subject{Kernel: true}}
}

// FuzzQuestions asks the broker whatever comes. It answers within bounds, or ends the
// worker; what it keeps is bounded, and no finding comes of an engine that found nothing.
func FuzzQuestions(f *testing.F) {
	size := binary.LittleEndian.AppendUint64(nil, 8)
	f.Add(wiretest.Packet(wire.AskJob, 0, wire.Protocol, 0, 0, 0, 7), []byte{})
	f.Add(wiretest.Packet(wire.AskRead, 0, wire.AppendRead(wire.AppendRead(nil, 4096, 4096), 1<<20, 1)...), []byte{})
	id, _ := json.Marshal(winstruct.BuiltIn().List()[0].Identity)
	f.Add(append(wiretest.Packet(wire.AskProfile, 0, id...), wiretest.Packet(wire.AskMore, 0)...), []byte{})
	f.Add(append(wiretest.Packet(wire.AskNear, 0, []byte("10.0.19041")...), wiretest.Packet(wire.AskNearOpen, 0, '3')...), []byte{})
	f.Add(append(wiretest.Packet(wire.AskContent, 8), wiretest.Packet(wire.AskScan, 0, size...)...), []byte("content!"))
	one, _ := json.Marshal(wire.Found{Finding: findingOf([]byte("content!"), "X")})
	f.Add(wiretest.Packet(wire.AskFound, len(one), make([]byte, 8)...), one)
	problems, _ := json.Marshal([]finding.Unread{{What: "a", Error: "b"}})
	f.Add(wiretest.Packet(wire.AskProblems, len(problems)), problems)
	done, _ := json.Marshal(&wire.Result{Scan: finding.Scan{Status: finding.StatusScanned}})
	f.Add(append(wiretest.Packet(wire.AskProgress, 0, 1, 0, 0, 0, 2, 0, 0, 0), wiretest.Packet(wire.AskDone, len(done))...), done)
	next := slices.Concat(wiretest.Packet(wire.AskDone, len(done)), wiretest.Packet(wire.AskJob, 0, wire.Protocol, 0, 0, 0, 7),
		wiretest.Packet(wire.AskContent, 8))
	f.Add(append(next, next...), done)
	seen := wire.AppendLooked(nil, fuzzed, scan.ImageKey{Base: 1, Size: 2, Section: 3}, true)
	f.Add(wiretest.Packet(wire.AskLooked, len(seen)), seen)
	profiles := winstruct.BuiltIn()
	window := make([]byte, wire.WindowSize)
	f.Fuzz(func(t *testing.T, data, text []byte) {
		clear(window[:1<<16])
		copy(window, text)
		c := &child{jobs: make(chan *job, 1), exited: make(chan struct{}), note: func(int) {}}
		var all []*job
		m := scan.Means{Profiles: profiles, Engine: scantest.Silent{}, Memory: scan.NewCache()}
		h := &scantest.Heard{OnLooked: func(id introspect.Identity) {
			if id != fuzzed {
				t.Fatalf("an image of %+v was looked at", id)
			}
		}}
		for range 2 {
			s := newJob(scan.Target{Name: "fuzz", Source: zeros()}, m, m.Memory.For(context.Background(), nil),
				scan.Request{Focus: []scan.Focused{{ID: fuzzed}}, Looked: true}, h)
			s.ctx = context.Background()
			all = append(all, s)
		}
		if err := all[1].encode(); err != nil {
			t.Fatal(err)
		}
		c.job = all[0]
		c.jobs <- all[1]
		v := newLaneServer(window)
		c.servers = []*laneServer{v}
		for _, b := range wiretest.Packets(data) {
			q, err := wire.ParseFrame(b)
			if err != nil || q.Code == wire.AskJob && len(c.jobs) == 0 { // one that does not come would be waited for
				break
			}
			a, err := c.answer(v, q)
			if err != nil {
				break
			}
			if a.N < 0 || a.N > wire.WindowSize || 5+len(a.Args) > wire.MaxFrame {
				t.Fatalf("an answer of %d bytes, and %d in the window, to %v", len(a.Args), a.N, q.Code)
			}
			copy(window, text)
		}
		for _, f := range h.Findings {
			if f.Kind == finding.KindSignature {
				t.Fatalf("a finding of nothing: %+v", f)
			}
		}
		for _, s := range all {
			kept := 0
			if v.job == s {
				kept = len(v.content)
			}
			if !s.done && s.budget.Load()+int64(kept) != wire.MaxContent || s.reported > wire.MaxReported+wire.WindowSize ||
				s.looked > wire.MaxLooked+wire.WindowSize/wire.LookedSize {
				t.Fatalf("%d bytes of budget left with %d kept, %d bytes reported", s.budget.Load(), kept, s.reported)
			}
		}
	})
}

// fuzzed is the process that the fuzzed scans are about.
var fuzzed = introspect.Identity{EPROCESS: 0xffff800000001000, PID: 8, CreateTime: 1, DTB: 0x1000}
