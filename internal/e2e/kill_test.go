package e2e

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
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
)

// killer is a guest with what kills in it.
type killer struct {
	*guest
	src    source.Source
	in     *introspect.Guest
	engine *kill.Engine
	opt    kill.Options
}

// labTimeout is long: a vCPU of the lab runs some twenty times slower than a real one.
const labTimeout = 2 * time.Minute

func newKiller(t testing.TB, g *guest) *killer {
	t.Helper()
	src, h, d := openBy(t, g, domain.Memhook)
	if kind := src.Info().Kind; kind != "memhook" {
		t.Fatalf("the source is %s", kind)
	}
	in, err := introspect.Open(context.Background(), src, winstruct.OpenStore())
	if err != nil {
		t.Fatal(err)
	}
	engine, err := kill.New(g.name, in, src)
	if err != nil {
		t.Fatal(err)
	}
	paused := asked(func() bool { d, err := h.Find(d.UUID); return err == nil && d.Paused })
	return &killer{guest: g, src: src, in: in, engine: engine,
		opt: kill.Options{Timeout: labTimeout, Domain: paused, Policy: verdict.Policy{Surrogates: verdict.DefaultSurrogates()}}}
}

// asked is a domain that says by a call whether it is paused.
type asked func() bool

func (a asked) Paused() bool { return a() }

// find is the process of a pid, as it is now.
func (k *killer) find(pid uint64) *introspect.Process {
	k.t.Helper()
	return k.living(fmt.Sprint(pid), func(p *introspect.Process) bool { return p.PID == pid })
}

// named is the first process of a name.
func (k *killer) named(name string) *introspect.Process {
	k.t.Helper()
	return k.living(name, func(p *introspect.Process) bool { return p.Name == name })
}

// living is the first process that lives and matches.
func (k *killer) living(what string, matches func(*introspect.Process) bool) *introspect.Process {
	k.t.Helper()
	k.in.Refresh()
	procs, _, err := k.in.Processes(context.Background())
	if err != nil {
		k.t.Fatal(err)
	}
	for i := range procs {
		if procs[i].Exited.IsZero() && matches(&procs[i]) {
			return &procs[i]
		}
	}
	k.t.Fatalf("no process %s in the guest", what)
	return nil
}

// start has the guest start a program and returns its pid.
func (g *guest) start(name string, more ...string) uint64 {
	g.t.Helper()
	line := g.say("start "+strings.Join(append([]string{name}, more...), " "), "START ")
	for !strings.HasSuffix(line, " "+name) {
		line = g.expect("START ")
	}
	pid, err := strconv.ParseUint(strings.Fields(line)[1], 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return pid
}

// number asks the guest something that it answers with a number behind a pid.
func (g *guest) number(command string, pid uint64) uint64 {
	g.t.Helper()
	word := strings.ToUpper(command)
	line := g.say(fmt.Sprintf("%s %d", command, pid), fmt.Sprintf("%s %d ", word, pid))
	n, err := strconv.ParseUint(strings.Fields(line)[2], 10, 64)
	if err != nil {
		g.t.Fatalf("the guest says %q", line)
	}
	return n
}

// kinds are the ways to spend one's time that a target can have.
var kinds = []string{"burn.exe", "sleeper.exe", "faulter.exe", "service.exe", "threads.exe", "wowburn.exe", "worker.exe", "wowsleeper.exe", "malware.exe", "wowthreads.exe"}

// dead checks what every kill must have come to.
func (k *killer) dead(rec *finding.Kill) bool {
	k.t.Helper()
	text, _ := json.Marshal(rec)
	if rec.Code != finding.OutcomeKilled || rec.ExitStatus == nil || *rec.ExitStatus != kill.Status || rec.Exited == nil || rec.Applied == nil || rec.Dead == nil {
		k.t.Errorf("%s[%d] is not dead by the record: %s", rec.Target.Name, rec.Target.PID, text)
		return false
	}
	for _, s := range rec.Surrogates {
		if s.Context != "equal" {
			k.t.Errorf("surrogate of %s[%d]: %s", rec.Target.Name, rec.Target.PID, text)
		}
	}
	k.expect(fmt.Sprintf("EXIT %d %s 0xc0000906", rec.Target.PID, rec.Target.Name))
	return true
}

// complaints are what programs of the guest said of what was done to them.
func (g *guest) complaints() []string {
	var out []string
	for _, line := range g.said {
		if strings.HasPrefix(line, "EXCEPTION ") || strings.Contains(line, "CONTEXT") || strings.Contains(line, "0xdead") {
			out = append(out, line)
		}
	}
	return out
}

// Each way to spend one's time ends, by the guest's own account; nobody else does.
func TestLabKillsEveryKindOfProcess(t *testing.T) {
	lab(t)
	for _, more := range [][]string{nil, {"--kva-shadow"}} {
		t.Run(strings.Join(append([]string{"10.0.19041"}, more...), " "), func(t *testing.T) {
			k := newKiller(t, start(t, "10.0.19041", more...))
			k.say("pause", "CHURN 0")
			before := living(k.truth())
			for _, name := range kinds {
				p := k.find(k.start(name))
				rec := k.engine.Kill(context.Background(), p, k.opt)
				if k.dead(rec) {
					t.Logf("%s: %s, applied after %v, dead after %v", name, rec.Method, rec.Applied, rec.Dead)
				}
				if name == "service.exe" && rec.Method != finding.MethodSurrogate {
					t.Errorf("%s never runs, but was killed by method %q", name, rec.Method)
				}
				for _, s := range rec.Surrogates {
					if n := k.number("handles", s.PID); n == 0 {
						t.Errorf("surrogate %d has no handles", s.PID)
					}
				}
			}
			k.say("reap", "REAPED ")
			if after := living(k.truth()); !slices.Equal(before, after) {
				t.Errorf("the other processes were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
			if c := k.complaints(); len(c) > 0 {
				t.Errorf("the guest complains: %q", c)
			}
			k.alive()
		})
	}
}

func living(l truth) []string {
	var out []string
	for _, p := range l.Processes {
		if p.Exited == nil {
			out = append(out, fmt.Sprintf("%d %s %d", p.PID, p.Name, p.Threads))
		}
	}
	sort.Strings(out)
	return out
}

// Many kills, half of them while other programs compute: all dead, all surrogates as
// they were. VMAV_LAB_KILLS says how many.
func TestLabKills(t *testing.T) {
	lab(t)
	n := 30
	if s := os.Getenv("VMAV_LAB_KILLS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	k := newKiller(t, start(t, "10.0.19041"))
	k.say("pause", "CHURN 0")
	before := living(k.truth())
	times := make(map[string][]time.Duration)
	handles := make(map[uint64]uint64)
	killed, busy := 0, []uint64(nil)
	for i := range n {
		if i == n/2 {
			busy = []uint64{k.start("burn.exe"), k.start("faulter.exe")} // load
		}
		name := kinds[i%len(kinds)]
		p := k.find(k.start(name))
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
			if now, was := k.number("handles", s.PID), handles[s.PID]; was != 0 && now != was {
				t.Errorf("surrogate %d has %d handles, had %d", s.PID, now, was)
			} else {
				handles[s.PID] = now
			}
		}
		if i%10 == 9 {
			k.say("reap", "REAPED ")
			t.Logf("%d of %d killed", killed, i+1)
		}
	}
	for _, pid := range busy {
		k.dead(k.engine.Kill(context.Background(), k.find(pid), k.opt))
	}
	k.say("reap", "REAPED ")
	if after := living(k.truth()); !slices.Equal(before, after) {
		t.Errorf("the other processes were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if c := k.complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
	k.alive()
	t.Logf("%d of %d verified dead, through %d surrogates", killed, n, len(handles))
	for _, how := range sortedNames(times) {
		t.Logf("request to death, %s: %s", how, distribution(times[how]))
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

func distribution(d []time.Duration) string {
	slices.Sort(d)
	at := func(share float64) time.Duration { return d[int(share*float64(len(d)-1))].Round(time.Millisecond) }
	return fmt.Sprintf("n %d, min %v, median %v, 90 %% %v, 99 %% %v, max %v", len(d), at(0), at(0.5), at(0.9), at(0.99), at(1))
}

// The command: its exit status and its record, and a scan that kills what it finds.
func TestLabCommandsKill(t *testing.T) {
	lab(t)
	g := start(t, "10.0.19041")
	g.say("pause", "CHURN 0") // a process that ends in mid-scan leaves the scan incomplete
	db := database(t)
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
		text, errs, status := vmav(t, append([]string{"scan", "-c", uri, g.name, "--database", db, "--action", "kill", "--timeout", "2m", "--format", "json"}, more...)...)
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
		text, errs, status := vmav(t, "history", "show", fmt.Sprint(id))
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
		g.expect(fmt.Sprintf("EXIT %d ", f.PID))
		recorded(f.ID, "Decided:   kill", "kill requested", "kill: killed", "exit status 0xc0000906", "Result:    scanned")
	}
	pid := g.start("sleeper.exe")
	text, errs, status := vmav(t, "kill", "-c", uri, g.name, strconv.FormatUint(pid, 10), "--timeout", "2m")
	if status != 0 || !strings.Contains(text, "killed") || errs != "" {
		t.Errorf("status %d, %q %q", status, text, errs)
	}
	var kills []struct {
		ID            int64
		Kind, Outcome string
	}
	decode(t, &kills, 0, "history", "--limit", "1")
	if len(kills) != 1 || kills[0].Kind != "kill" || kills[0].Outcome != "killed" {
		t.Errorf("the newest record: %+v", kills)
	} else {
		recorded(kills[0].ID, fmt.Sprintf("pid %d", pid), "by hand", "kill requested", "kill: killed")
	}
	if text, errs, status := vmav(t, "history", "verify"); status != 0 {
		t.Errorf("%s %s", text, errs)
	}
	text, errs, status = vmav(t, "kill", "-c", uri, "--source", "qemu", g.name, strconv.FormatUint(g.start("sleeper.exe"), 10))
	if status != 2 || !strings.Contains(text, "refused") || !strings.Contains(text, "kvm-memhook") {
		t.Errorf("through QEMU: status %d, %q %q", status, text, errs)
	}
}
