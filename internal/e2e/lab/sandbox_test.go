package lab

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/window"
)

// What a worker maps of a guest is the guest's memory, also when the descriptor is closed,
// and it goes with the guest.
func TestSharedMemory(t *testing.T) {
	g := harness.Start(t, "10.0.19041")
	hook := sourceBy(t, g, domain.Memhook)
	harness.Virsh(t, "suspend", g.Name)
	f, runs, err := hook.(source.Sharer).Share()
	if err != nil {
		t.Fatal(err)
	}
	shared := window.Map(int(f.Fd()), runs)
	f.Close()
	got, want := make([]byte, 1<<20), make([]byte, 1<<20)
	total := 0
	for _, r := range hook.Ranges() {
		for at := uint64(0); at < r.Size; at += uint64(len(got)) {
			n := min(uint64(len(got)), r.Size-at)
			if err := hook.ReadPhys(want[:n], r.Start+at); err != nil {
				t.Fatal(err)
			}
			if !shared.Read(got[:n], r.Start+at) || !bytes.Equal(got[:n], want[:n]) {
				t.Fatalf("memory at %#x is not the guest's", r.Start+at)
			}
			total += int(n)
		}
	}
	if last := hook.Ranges()[len(hook.Ranges())-1].End(); total == 0 || shared.Read(got[:1], last) {
		t.Errorf("%d bytes read, and one behind the last", total)
	}
	harness.Virsh(t, "destroy", g.Name)
	if shared.Read(got, runs[0].Start) {
		t.Error("memory of a guest that has gone can be read")
	}
}

// A scan through the module comes to the same in a worker and without one.
func TestScanInAWorker(t *testing.T) {
	g := harness.Shared(t, "10.0.19041")
	g.Say("pause", "CHURN 0")
	db := harness.Database(t)
	scan := func(more ...string) (out struct {
		Domains []struct {
			Status, Source           string
			Processes, Images, Files int
			Findings                 []struct{ PID uint64 }
		}
	}) {
		text, errs, status := harness.Vmav(t, append([]string{"scan", "-c", harness.URI, g.Name, "--database", db, "--no-history", "--format", "json"},
			more...)...)
		if status != 1 {
			t.Fatalf("status %d: %s %s", status, errs, text)
		}
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	got, want := scan(), scan("--no-sandbox")
	a, b := got.Domains[0], want.Domains[0]
	if a.Status != "scanned" || a.Source != "memhook" || a.Processes != b.Processes || a.Images != b.Images || len(a.Findings) == 0 ||
		!slices.Equal(a.Findings, b.Findings) {
		t.Errorf("got  %+v\nwant %+v", a, b)
	}
}
