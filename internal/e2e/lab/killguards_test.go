package lab

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
)

// What must not be killed is not, and is named.
func TestKillGuards(t *testing.T) {
	k := newKiller(t, harness.Start(t, "10.0.19041"))
	k.Say("pause", "CHURN 0")
	before := k.Living()
	ctx := context.Background()
	want := func(t *testing.T, rec *finding.Kill, o finding.Code, reason string) {
		t.Helper()
		if rec.Code != o || !regexp.MustCompile(reason).MatchString(rec.Reason) || rec.Method != "" {
			t.Errorf("%s[%d]: %q by %q; want %s with %q", rec.Target.Name, rec.Target.PID, rec.Text(), rec.Method, o, reason)
		}
	}
	t.Run("critical", func(t *testing.T) {
		want(t, k.engine.Kill(ctx, k.named("csrss.exe"), k.opt), finding.OutcomeRefused, "critical")
	})
	t.Run("System", func(t *testing.T) { want(t, k.engine.Kill(ctx, k.find(4), k.opt), finding.OutcomeRefused, "System") })
	t.Run("of Windows by name", func(t *testing.T) {
		want(t, k.engine.Kill(ctx, k.named("winlogon.exe"), k.opt), finding.OutcomeRefused, "system process")
	})
	t.Run("wrong pid", func(t *testing.T) {
		_, errs, status := harness.Vmav(t, "kill", "-c", harness.URI, k.Name, "9996")
		if status != 2 || !strings.Contains(errs, "no process 9996") {
			t.Errorf("status %d, %q", status, errs)
		}
	})
	t.Run("dry run", func(t *testing.T) {
		opt := k.opt
		opt.DryRun = true
		p := k.find(k.Start("burn.exe"))
		rec := k.engine.Kill(ctx, p, opt)
		if rec.Code != finding.OutcomePlanned || len(rec.Plan) < 2 {
			t.Errorf("%+v", rec)
		}
		k.dead(k.engine.Kill(ctx, p, k.opt))
		// Once more: it has ended.
		want(t, k.engine.Kill(ctx, p, k.opt), finding.OutcomeExited, "0xc0000906")
	})
	t.Run("reused pid", func(t *testing.T) {
		p := k.find(k.Start("sleeper.exe"))
		k.dead(k.engine.Kill(ctx, p, k.opt))
		k.Say("reap", "REAPED ")
		k.Start("worker.exe", strconv.FormatUint(p.PID, 10))
		want(t, k.engine.Kill(ctx, p, k.opt), finding.OutcomeRefused, "reused.*worker.exe")
		k.dead(k.engine.Kill(ctx, k.find(p.PID), k.opt))
	})
	t.Run("without a way", func(t *testing.T) {
		opt := k.opt
		opt.Policy.Surrogates, opt.Timeout = nil, 3*time.Second
		p := k.find(k.Start("service.exe"))
		want(t, k.engine.Kill(ctx, p, opt), finding.OutcomePending, "user mode.*surrogates are not allowed")
		k.dead(k.engine.Kill(ctx, p, k.opt))
	})
	t.Run("trimmed", func(t *testing.T) {
		// Its NtTerminateProcess is not in its working set: the guest gets it first.
		p := k.find(k.Start("burn.exe"))
		opt := k.opt
		opt.DryRun = true
		at := stubOf(t, k.engine.Kill(ctx, p, opt))
		k.Say(fmt.Sprintf("trim %d", p.PID), "TRIMMED ")
		if m, err := k.in.UserSpace(p).Mapping(at); !errors.Is(err, introspect.ErrNotPresent) {
			t.Fatalf("the stub at %#x is there still: %+v, %v", at, m, err)
		}
		opt = k.opt
		opt.Policy.Surrogates = nil
		if rec := k.engine.Kill(ctx, p, opt); k.dead(rec) && rec.Method != finding.MethodDirect {
			t.Errorf("killed by method %q", rec.Method)
		}
	})
	t.Run("hooked", func(t *testing.T) {
		// The process's own copy of NtTerminateProcess jumps elsewhere.
		p := k.find(k.Start("burn.exe"))
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
	k.Say("reap", "REAPED ")
	if after := k.Living(); !slices.Equal(before, after) {
		t.Errorf("the other processes were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if c := k.Complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
	t.Run("paused domain", func(t *testing.T) {
		p := k.find(k.Start("burn.exe"))
		harness.Virsh(t, "suspend", k.Name)
		want(t, k.engine.Kill(ctx, p, k.opt), finding.OutcomeRefused, "paused")
		opt := k.opt
		n := 0
		opt.Timeout = 3 * time.Second
		opt.Domain = asked(func() bool { n++; return n > 1 }) // it was running a moment ago
		want(t, k.engine.Kill(ctx, p, opt), finding.OutcomePending, "paused")
		harness.Virsh(t, "resume", k.Name)
		k.dead(k.engine.Kill(ctx, p, k.opt))
	})
	t.Run("domain destroyed in mid-action", func(t *testing.T) {
		p := k.find(k.Start("burn.exe"))
		k.Say("freeze", "FROZEN 1") // neither it nor a surrogate comes
		done := make(chan *finding.Kill)
		go func() { done <- k.engine.Kill(ctx, p, k.opt) }()
		time.Sleep(500 * time.Millisecond)
		harness.Virsh(t, "destroy", k.Name)
		want(t, <-done, finding.OutcomeGone, "went away")
		want(t, k.engine.Kill(ctx, p, k.opt), finding.OutcomeGone, "went away")
	})
}

// stubOf is where a plan says that NtTerminateProcess is.
func stubOf(t *testing.T, rec *finding.Kill) uint64 {
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
