package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
)

// killer is a guest with what kills in it.
type killer struct {
	*harness.Guest
	src    source.Source
	in     *introspect.Guest
	engine *kill.Engine
	opt    kill.Options
}

// labTimeout is long: a vCPU of the lab runs some twenty times slower than a real one.
const labTimeout = 2 * time.Minute

func newKiller(t testing.TB, g *harness.Guest) *killer {
	t.Helper()
	src, h, d := openBy(t, g, domain.Memhook)
	if kind := src.Info().Kind; kind != "memhook" {
		t.Fatalf("the source is %s", kind)
	}
	in, err := introspect.Open(context.Background(), src, winstruct.OpenStore())
	if err != nil {
		t.Fatal(err)
	}
	engine, err := kill.New(g.Name, in, src)
	if err != nil {
		t.Fatal(err)
	}
	paused := asked(func() bool { d, err := h.Find(d.UUID); return err == nil && d.Paused })
	return &killer{Guest: g, src: src, in: in, engine: engine,
		opt: kill.Options{Timeout: labTimeout, Domain: paused, Policy: verdict.Policy{Surrogates: verdict.DefaultSurrogates()}}}
}

// asked is a domain that says by a call whether it is paused.
type asked func() bool

func (a asked) Paused() bool { return a() }

// find is the process of a pid, as it is now.
func (k *killer) find(pid uint64) *introspect.Process {
	k.T.Helper()
	return k.living(fmt.Sprint(pid), func(p *introspect.Process) bool { return p.PID == pid })
}

// named is the first process of a name.
func (k *killer) named(name string) *introspect.Process {
	k.T.Helper()
	return k.living(name, func(p *introspect.Process) bool { return p.Name == name })
}

// living is the first process that lives and matches.
func (k *killer) living(what string, matches func(*introspect.Process) bool) *introspect.Process {
	k.T.Helper()
	k.in.Refresh()
	procs, _, err := k.in.Processes(context.Background())
	if err != nil {
		k.T.Fatal(err)
	}
	for i := range procs {
		if procs[i].Exited.IsZero() && matches(&procs[i]) {
			return &procs[i]
		}
	}
	k.T.Fatalf("no process %s in the guest", what)
	return nil
}

// kinds are the ways to spend one's time that a target can have.
var kinds = []string{"burn.exe", "sleeper.exe", "faulter.exe", "service.exe", "threads.exe", "wowburn.exe", "worker.exe", "wowsleeper.exe", "malware.exe",
	"wowthreads.exe"}

// dead checks what every kill must have come to.
func (k *killer) dead(rec *finding.Kill) bool {
	k.T.Helper()
	text, _ := json.Marshal(rec)
	if rec.Code != finding.OutcomeKilled || rec.ExitStatus == nil || *rec.ExitStatus != kill.Status || rec.Exited == nil || rec.Applied == nil ||
		rec.Dead == nil {
		k.T.Errorf("%s[%d] is not dead by the record: %s", rec.Target.Name, rec.Target.PID, text)
		return false
	}
	for _, s := range rec.Surrogates {
		if s.Context != "equal" {
			k.T.Errorf("surrogate of %s[%d]: %s", rec.Target.Name, rec.Target.PID, text)
		}
	}
	k.Expect(fmt.Sprintf("EXIT %d %s 0xc0000906", rec.Target.PID, rec.Target.Name))
	return true
}

// Each way to spend one's time ends, by the guest's own account; nobody else does. Without
// KVA shadow TestKills kills one of each kind, and this one does so where there is time.
func TestKillsEveryKindOfProcess(t *testing.T) {
	for _, more := range [][]string{{"--kva-shadow"}, nil}[:harness.Long(1, 2)] {
		t.Run(strings.Join(append([]string{"10.0.19041"}, more...), " "), func(t *testing.T) {
			k := newKiller(t, harness.Shared(t, "10.0.19041", more...))
			k.Say("pause", "CHURN 0")
			before := k.Living()
			for _, name := range kinds {
				p := k.find(k.Start(name))
				rec := k.engine.Kill(context.Background(), p, k.opt)
				if k.dead(rec) {
					t.Logf("%s: %s, applied after %v, dead after %v", name, rec.Method, rec.Applied, rec.Dead)
				}
				if name == "service.exe" && rec.Method != finding.MethodSurrogate {
					t.Errorf("%s never runs, but was killed by method %q", name, rec.Method)
				}
				for _, s := range rec.Surrogates {
					if n := k.Number("handles", s.PID); n == 0 {
						t.Errorf("surrogate %d has no handles", s.PID)
					}
				}
			}
			k.Say("reap", "REAPED ")
			if after := k.Living(); !slices.Equal(before, after) {
				t.Errorf("the other processes were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
			if c := k.Complaints(); len(c) > 0 {
				t.Errorf("the guest complains: %q", c)
			}
			k.Alive()
		})
	}
}

// Many kills, half of them while other programs compute: all dead, all surrogates as
// they were. VMAV_LAB_KILLS says how many.
func TestKills(t *testing.T) {
	n := harness.Long(10, 30)
	if s := os.Getenv("VMAV_LAB_KILLS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	k := newKiller(t, harness.Shared(t, "10.0.19041"))
	k.Say("pause", "CHURN 0")
	before := k.Living()
	times := make(map[string][]time.Duration)
	handles := make(map[uint64]uint64)
	killed, busy := 0, []uint64(nil)
	for i := range n {
		if i == n/2 {
			busy = []uint64{k.Start("burn.exe"), k.Start("faulter.exe")} // load
		}
		name := kinds[i%len(kinds)]
		p := k.find(k.Start(name))
		rec := k.engine.Kill(context.Background(), p, k.opt)
		if !k.dead(rec) {
			continue
		}
		killed++
		load := "idle"
		if busy != nil {
			load = "under load"
		}
		times[rec.Method+", "+load] = append(times[rec.Method+", "+load], time.Duration(*rec.Dead))
		for _, s := range rec.Surrogates {
			if now, was := k.Number("handles", s.PID), handles[s.PID]; was != 0 && now != was {
				t.Errorf("surrogate %d has %d handles, had %d", s.PID, now, was)
			} else {
				handles[s.PID] = now
			}
		}
		if i%10 == 9 {
			k.Say("reap", "REAPED ")
			t.Logf("%d of %d killed", killed, i+1)
		}
	}
	for _, pid := range busy {
		k.dead(k.engine.Kill(context.Background(), k.find(pid), k.opt))
	}
	k.Say("reap", "REAPED ")
	if after := k.Living(); !slices.Equal(before, after) {
		t.Errorf("the other processes were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if c := k.Complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
	k.Alive()
	t.Logf("%d of %d verified dead, through %d surrogates", killed, n, len(handles))
	for _, how := range sortedNames(times) {
		t.Logf("request to death, %s: %s", how, harness.Distribution(times[how]))
	}
	if killed != n {
		t.Errorf("%d of %d killed", killed, n)
	}
}

func sortedNames[V any](m map[string]V) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// The command: its exit status and its record, and a scan that kills what it finds.
func TestCommandsKill(t *testing.T) {
	g := harness.Start(t, "10.0.19041")
	g.Say("pause", "CHURN 0") // a process that ends in mid-scan leaves the scan incomplete
	db := harness.Database(t)
	var out struct {
		Domains []struct {
			Findings []struct {
				ID              int64
				PID             uint64
				Action, Outcome string
			}
			Kills []struct{ Outcome, Method string }
		}
	}
	scan := func(want int, more ...string) {
		t.Helper()
		text, errs, status := harness.Vmav(t, append([]string{"scan", "-c", harness.URI, g.Name, "--database", db, "--action", "kill", "--timeout", "2m",
			"--format", "json"}, more...)...)
		if status != want {
			t.Fatalf("scan ended with %d, want %d: %s %s", status, want, errs, text)
		}
		out.Domains = nil
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			t.Fatal(err)
		}
		if len(out.Domains) != 1 || len(out.Domains[0].Findings) == 0 || len(out.Domains[0].Kills) == 0 {
			t.Fatalf("nothing found or nothing killed: %s", text)
		}
	}
	// What became of each finding is in the history, in its order.
	recorded := func(id int64, want ...string) {
		t.Helper()
		text, errs, status := harness.Vmav(t, "history", "show", fmt.Sprint(id))
		at := 0
		for _, w := range want {
			if i := strings.Index(text[at:], w); i >= 0 {
				at += i
			} else {
				t.Errorf("no %q, in this place, in the record (status %d, %q):\n%s", w, status, errs, text)
			}
		}
	}
	scan(1, "--dry-run")
	for _, f := range out.Domains[0].Findings {
		if f.Action != "kill" || f.Outcome != "planned" {
			t.Errorf("a dry run: %+v", f)
		}
		recorded(f.ID, "Decided:   kill", "kill: planned")
	}
	scan(1)
	for _, f := range out.Domains[0].Findings {
		if f.Action != "kill" || f.Outcome != "killed" {
			t.Errorf("%+v", f)
		}
		g.Expect(fmt.Sprintf("EXIT %d ", f.PID))
		recorded(f.ID, "Decided:   kill", "kill requested", "kill: killed", "exit status 0xc0000906", "Result:    scanned")
	}
	pid := g.Start("sleeper.exe")
	text, errs, status := harness.Vmav(t, "kill", "-c", harness.URI, g.Name, strconv.FormatUint(pid, 10), "--timeout", "2m")
	if status != 0 || !strings.Contains(text, "killed") || errs != "" {
		t.Errorf("status %d, %q %q", status, text, errs)
	}
	var kills []struct {
		ID            int64
		Kind, Outcome string
	}
	harness.Decode(t, &kills, 0, "history", "--limit", "1")
	if len(kills) != 1 || kills[0].Kind != "kill" || kills[0].Outcome != "killed" {
		t.Errorf("the newest record: %+v", kills)
	} else {
		recorded(kills[0].ID, fmt.Sprintf("pid %d", pid), "by hand", "kill requested", "kill: killed")
	}
	if text, errs, status := harness.Vmav(t, "history", "verify"); status != 0 {
		t.Errorf("%s %s", text, errs)
	}
	text, errs, status = harness.Vmav(t, "kill", "-c", harness.URI, "--source", "qemu", g.Name, strconv.FormatUint(g.Start("sleeper.exe"), 10))
	if status != 2 || !strings.Contains(text, "refused") || !strings.Contains(text, "kvm-memhook") {
		t.Errorf("through QEMU: status %d, %q %q", status, text, errs)
	}
}
