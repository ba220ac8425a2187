package inside

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/window"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker/wire"
	"vmav.dev/vmav/internal/worker/wire/wiretest"
)

// FuzzAnswers answers a worker whatever comes. It gets results or errors, and nothing
// larger than what it asked for.
func FuzzAnswers(f *testing.F) {
	f.Add(wiretest.Packet(wire.StatusOK, 4096, 0), []byte{})
	f.Add(wiretest.Packet(wire.StatusGone, 0, []byte("gone")...), []byte{})
	f.Add(append(wiretest.Packet(wire.StatusOK, wire.WindowSize, 0xff, 0xff, 0xff, 0), wiretest.Packet(wire.StatusOK, 1)...), []byte("{}"))
	f.Add(append(wiretest.Packet(wire.StatusOK, 2, 2, 0, 0, 0), wiretest.Packet(wire.StatusOK, 2)...), []byte("[]"))
	shared := make([]byte, 64)
	window.EncodeRanges(shared, []source.Shared{{Range: source.Range{Size: 4096}}})
	f.Add(wiretest.Packet(wire.StatusOK, 4, 0), shared)
	f.Fuzz(func(t *testing.T, data, text []byte) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[0])
		for _, p := range wiretest.Packets(data) {
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
		ls <- wire.NewLane(pair[0], append(make([]byte, 0, wire.WindowSize), text[:min(len(text), wire.WindowSize)]...)[:wire.WindowSize])
		g := &remote{lanes: ls}
		buf := make([]byte, 4096)
		reqs := []source.Request{{Addr: 0, P: buf}}
		_ = g.ReadPhysBatch(reqs)
		if n := len(g.Ranges()); n > wire.WindowSize/16 {
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
		if runs, err := window.DecodeRanges(text); err == nil && 24*len(runs) > len(text) {
			t.Fatalf("%d runs of %d bytes", len(runs), len(text))
		}
		if len(ls) != 1 {
			t.Fatal("a lane was lost")
		}
	})
}
