package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/report"
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
	h, err := domain.Connect(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	h.Use(domain.Memhook, nil)
	d, err := h.Find(g.name)
	if err != nil {
		t.Fatal(err)
	}
	src, err := h.Open(context.Background(), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
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
	paused := func() bool { d, err := h.Find(d.UUID); return err == nil && d.Paused }
	return &killer{guest: g, src: src, in: in, engine: engine,
		opt: kill.Options{Timeout: labTimeout, Paused: paused, Policy: verdict.Policy{Action: verdict.Kill, Surrogates: verdict.DefaultSurrogates()}}}
}

// find is the process of a pid, as it is now.
func (k *killer) find(pid uint64) *introspect.Process {
	k.t.Helper()
	k.in.Refresh()
	procs, _, err := k.in.Processes(context.Background())
	if err != nil {
		k.t.Fatal(err)
	}
	for i := range procs {
		if procs[i].PID == pid && procs[i].Exited.IsZero() {
			return &procs[i]
		}
	}
	k.t.Fatalf("no process %d in the guest", pid)
	return nil
}

// named is the first living process of a name.
func (k *killer) named(name string) *introspect.Process {
	k.t.Helper()
	k.in.Refresh()
	procs, _, err := k.in.Processes(context.Background())
	if err != nil {
		k.t.Fatal(err)
	}
	for i := range procs {
		if procs[i].Name == name && procs[i].Exited.IsZero() {
			return &procs[i]
		}
	}
	k.t.Fatalf("no process %s in the guest", name)
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
func (k *killer) dead(rec *report.Kill) bool {
	k.t.Helper()
	text, _ := json.Marshal(rec)
	if rec.Outcome != report.OutcomeKilled || rec.ExitStatus == nil || *rec.ExitStatus != kill.Status || rec.Exited == nil || rec.Applied == nil || rec.Dead == nil {
		k.t.Errorf("%s[%d] is not dead by the record: %s", rec.Target.Name, rec.Target.PID, text)
		return false
	}
	for _, s := range rec.Services {
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
				if name == "service.exe" && rec.Method != report.MethodSurrogate {
					t.Errorf("%s never runs, but was killed by method %q", name, rec.Method)
				}
				for _, s := range rec.Services {
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
			k.expect("HB ")
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
	n := 60
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
		for _, s := range rec.Services {
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
	k.expect("HB ")
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

// What must not be killed is not, and is named.
func TestLabKillGuards(t *testing.T) {
	lab(t)
	k := newKiller(t, start(t, "10.0.19041"))
	k.say("pause", "CHURN 0")
	before := living(k.truth())
	ctx := context.Background()
	want := func(t *testing.T, rec *report.Kill, o report.Outcome, reason string) {
		t.Helper()
		if rec.Outcome != o || !regexp.MustCompile(reason).MatchString(rec.Reason) || rec.Method != "" {
			t.Errorf("%s[%d]: %q by %q; want %s with %q", rec.Target.Name, rec.Target.PID, rec.String(), rec.Method, o, reason)
		}
	}
	t.Run("critical", func(t *testing.T) {
		want(t, k.engine.Kill(ctx, k.named("csrss.exe"), k.opt), report.OutcomeRefused, "critical")
	})
	t.Run("System", func(t *testing.T) { want(t, k.engine.Kill(ctx, k.find(4), k.opt), report.OutcomeRefused, "System") })
	t.Run("of Windows by name", func(t *testing.T) {
		want(t, k.engine.Kill(ctx, k.named("winlogon.exe"), k.opt), report.OutcomeRefused, "system process")
	})
	t.Run("wrong pid", func(t *testing.T) {
		_, errs, status := vmav(t, "kill", "-c", uri, k.name, "9996")
		if status != 2 || !strings.Contains(errs, "no process 9996") {
			t.Errorf("status %d, %q", status, errs)
		}
	})
	t.Run("dry run", func(t *testing.T) {
		opt := k.opt
		opt.DryRun = true
		p := k.find(k.start("burn.exe"))
		rec := k.engine.Kill(ctx, p, opt)
		if rec.Outcome != report.OutcomePlanned || len(rec.Plan) < 2 {
			t.Errorf("%+v", rec)
		}
		k.dead(k.engine.Kill(ctx, p, k.opt))
		// Once more: it has ended.
		want(t, k.engine.Kill(ctx, p, k.opt), report.OutcomeExited, "0xc0000906")
	})
	t.Run("reused pid", func(t *testing.T) {
		p := k.find(k.start("sleeper.exe"))
		k.dead(k.engine.Kill(ctx, p, k.opt))
		k.say("reap", "REAPED ")
		k.start("worker.exe", strconv.FormatUint(p.PID, 10))
		want(t, k.engine.Kill(ctx, p, k.opt), report.OutcomeRefused, "reused.*worker.exe")
		k.dead(k.engine.Kill(ctx, k.find(p.PID), k.opt))
	})
	t.Run("without a way", func(t *testing.T) {
		opt := k.opt
		opt.Policy.Surrogates, opt.Timeout = nil, 3*time.Second
		p := k.find(k.start("service.exe"))
		want(t, k.engine.Kill(ctx, p, opt), report.OutcomePending, "user mode.*surrogates are not allowed")
		k.dead(k.engine.Kill(ctx, p, k.opt))
	})
	t.Run("trimmed", func(t *testing.T) {
		// Its NtTerminateProcess is not in its working set: the guest gets it first.
		p := k.find(k.start("burn.exe"))
		opt := k.opt
		opt.DryRun = true
		at := stubOf(t, k.engine.Kill(ctx, p, opt))
		k.say(fmt.Sprintf("trim %d", p.PID), "TRIMMED ")
		if m, err := k.in.UserSpace(p).Mapping(at); !errors.Is(err, introspect.ErrNotPresent) {
			t.Fatalf("the stub at %#x is there still: %+v, %v", at, m, err)
		}
		opt = k.opt
		opt.Policy.Surrogates = nil
		if rec := k.engine.Kill(ctx, p, opt); k.dead(rec) && rec.Method != report.MethodDirect {
			t.Errorf("killed by method %q", rec.Method)
		}
	})
	t.Run("hooked", func(t *testing.T) {
		// The process's own copy of NtTerminateProcess jumps elsewhere.
		p := k.find(k.start("burn.exe"))
		opt := k.opt
		opt.DryRun = true
		at := stubOf(t, k.engine.Kill(ctx, p, opt))
		m, err := k.in.UserSpace(p).Mapping(at)
		if err != nil {
			t.Fatal(err)
		}
		w := k.src.(source.Writer)
		var old [5]byte
		if err := errors.Join(k.src.ReadPhys(old[:], m.GPA), w.WritePhys([]byte{0xe9, 0, 0, 0, 0}, m.GPA)); err != nil {
			t.Fatal(err)
		}
		rec := k.engine.Kill(ctx, p, opt)
		if err := w.WritePhys(old[:], m.GPA); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(strings.Join(rec.Plan, "\n"), "hooked") {
			t.Errorf("a hooked stub: %+v", rec)
		}
		k.dead(k.engine.Kill(ctx, p, k.opt))
	})
	k.say("reap", "REAPED ")
	if after := living(k.truth()); !slices.Equal(before, after) {
		t.Errorf("the other processes were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if c := k.complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
	t.Run("paused domain", func(t *testing.T) {
		p := k.find(k.start("burn.exe"))
		virsh(t, "suspend", k.name)
		want(t, k.engine.Kill(ctx, p, k.opt), report.OutcomeRefused, "paused")
		opt := k.opt
		asked := 0
		opt.Timeout = 3 * time.Second
		opt.Paused = func() bool { asked++; return asked > 1 } // it was running a moment ago
		want(t, k.engine.Kill(ctx, p, opt), report.OutcomePending, "paused")
		virsh(t, "resume", k.name)
		k.dead(k.engine.Kill(ctx, p, k.opt))
	})
	t.Run("domain destroyed in mid-action", func(t *testing.T) {
		p := k.find(k.start("service.exe"))
		opt := k.opt
		opt.Policy.Surrogates = nil
		opt.Timeout = 4 * labTimeout // a quarter of it, at most, for its own threads
		done := make(chan *report.Kill)
		go func() { done <- k.engine.Kill(ctx, p, opt) }()
		time.Sleep(500 * time.Millisecond)
		virsh(t, "destroy", k.name)
		want(t, <-done, report.OutcomeGone, "went away")
		want(t, k.engine.Kill(ctx, p, opt), report.OutcomeGone, "went away")
	})
}

// stubOf is where a plan says that NtTerminateProcess is.
func stubOf(t *testing.T, rec *report.Kill) uint64 {
	t.Helper()
	m := regexp.MustCompile(`NtTerminateProcess at (0x[0-9a-f]+)`).FindStringSubmatch(strings.Join(rec.Plan, "\n"))
	if m == nil {
		t.Fatalf("no address in %+v", rec)
	}
	at, err := strconv.ParseUint(m[1], 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return at
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
	scan(1, "--dry-run")
	for _, f := range out.Domains[0].Findings {
		if f.Action != "kill" || f.Outcome != "planned" {
			t.Errorf("a dry run: %+v", f)
		}
	}
	scan(1)
	for _, f := range out.Domains[0].Findings {
		if f.Action != "kill" || f.Outcome != "killed" {
			t.Errorf("%+v", f)
		}
		g.expect(fmt.Sprintf("EXIT %d ", f.PID))
	}
	pid := g.start("sleeper.exe")
	text, errs, status := vmav(t, "kill", "-c", uri, g.name, strconv.FormatUint(pid, 10), "--timeout", "2m")
	if status != 0 || !strings.Contains(text, "killed") || errs != "" {
		t.Errorf("status %d, %q %q", status, text, errs)
	}
	text, errs, status = vmav(t, "kill", "-c", uri, "--source", "qemu", g.name, strconv.FormatUint(g.start("sleeper.exe"), 10))
	if status != 2 || !strings.Contains(text, "refused") || !strings.Contains(text, "kvm-memhook") {
		t.Errorf("through QEMU: status %d, %q %q", status, text, errs)
	}
}
