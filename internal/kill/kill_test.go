package kill

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/sourcetest"
	"vmav.dev/vmav/internal/subject"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

func (h *fakeHost) engine() *Engine {
	h.t.Helper()
	e, err := New("test", h.g, source.NewCache(h, 64))
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

func options() Options {
	return Options{Timeout: 400 * time.Millisecond, Policy: verdict.Policy{Surrogates: verdict.DefaultSurrogates()}}
}

func TestDirectKill(t *testing.T) {
	h := newFake(t)
	p := h.process("notepad.exe")
	h.runs[p.DTB] = true
	rec := h.engine().Kill(context.Background(), p, options())
	if rec.Code != finding.OutcomeKilled || rec.Method != finding.MethodDirect || rec.ExitStatus == nil || *rec.ExitStatus != Status || rec.Applied == nil ||
		rec.Dead == nil {
		t.Errorf("%+v", rec)
	}
	if rec := h.engine().Kill(context.Background(), p, options()); rec.Code != finding.OutcomeExited || rec.Method != "" {
		t.Errorf("once more: %+v", rec)
	}
}

// A process that never runs is ended by a service, which then has all that it had.
func TestSurrogateKill(t *testing.T) {
	h := newFake(t)
	h.Regs = []source.Registers{{CR4: 1}}
	p := h.process("notepad.exe")
	services := h.services(3)
	for _, s := range services {
		h.runs[s.DTB] = true
	}
	before := h.stacks(services)
	rec := h.engine().Kill(context.Background(), p, options())
	if rec.Code != finding.OutcomeKilled || rec.Method != finding.MethodSurrogate || len(rec.Surrogates) != 1 || rec.Surrogates[0].Context != "equal" {
		t.Fatalf("%+v", rec)
	}
	var calls []string
	for _, c := range rec.Surrogates[0].Calls {
		calls = append(calls, c.Name)
	}
	if !slices.Equal(calls, []string{ntOpenProcess, ntTerminateProcess, ntClose}) {
		t.Errorf("calls %v", calls)
	}
	h.clean(services, before)
	if parked, restored := count(h.log, "park"), count(h.log, "restore"); parked == 0 || parked != restored {
		t.Errorf("%d threads parked, %d given back", parked, restored)
	}
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}

// stacks are the pages that services' frames would be written to.
func (h *fakeHost) stacks(services []*introspect.Process) [][]byte {
	var out [][]byte
	for _, s := range services {
		teb, err := h.g.ReadTEB(s, h.teb(s))
		if err != nil {
			h.t.Fatal(err)
		}
		p := make([]byte, 2*source.PageSize)
		if err := h.g.Space(s).Read(p, teb.StackBase-uint64(len(p))); err != nil {
			h.t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// clean checks that nothing of a kill is left behind in the services.
func (h *fakeHost) clean(services []*introspect.Process, before [][]byte) {
	h.t.Helper()
	for i, now := range h.stacks(services) {
		if !bytes.Equal(now, before[i]) {
			h.t.Errorf("the stack of service %d was changed", services[i].PID)
		}
	}
	if len(h.saved) > 0 {
		h.t.Errorf("%d threads are parked still", len(h.saved))
	}
	if len(h.opened) > 0 {
		h.t.Errorf("handles are open still: %v", h.opened)
	}
}

// Whatever step fails, and however, the service gets its context back, the handle is
// closed, and the outcome is not "killed" unless the guest says so.
func TestEveryStepMayFail(t *testing.T) {
	expired := &source.Event{Kind: source.EventExpired}
	guard := &source.Event{Kind: source.EventCancelled, Reason: source.ReasonGuard}
	moved := &source.Event{Kind: source.EventCancelled, Reason: source.ReasonMoved}
	refused := errors.New("refused")
	for _, step := range []string{"park", "open", "terminate", "close", "restore"} {
		for name, how := range map[string]struct {
			ev  *source.Event
			err error
		}{"expired": {ev: expired}, "guard": {ev: guard}, "moved": {ev: moved}, "refused": {err: refused}} {
			t.Run(step+" "+name, func(t *testing.T) {
				h := newFake(t)
				h.Regs = []source.Registers{{CR4: 1}}
				p := h.process("notepad.exe")
				services := h.services(2)
				for _, s := range services {
					h.runs[s.DTB] = true
				}
				before := h.stacks(services)
				h.fail = func(s string, _ *source.Action) (*source.Event, error) {
					if s != step {
						return nil, nil
					}
					if how.ev == nil {
						return nil, how.err
					}
					ev := *how.ev
					return &ev, nil
				}
				rec := h.engine().Kill(context.Background(), p, options())
				ended := step == "close" || step == "restore"
				if (rec.Code == finding.OutcomeKilled) != ended || rec.Code == "" || !ended && rec.Reason == "" {
					t.Errorf("%+v", rec)
				}
				if rec.ExitStatus != nil != ended {
					t.Errorf("exit status %v", rec.ExitStatus)
				}
				switch step {
				case "close": // its handle cannot be given back
					clear(h.opened)
					if len(rec.Surrogates) == 0 || rec.Surrogates[0].Error == "" {
						t.Errorf("the record does not say that the handle is open: %+v", rec)
					}
				case "restore": // the module gives it back when the control ends
					clear(h.saved)
					for _, s := range rec.Surrogates {
						if s.Context == "equal" {
							t.Errorf("the record says that the context is equal: %+v", s)
						}
					}
				}
				h.clean(services, before)
			})
		}
	}
}

// The guest may end at any step.
func TestGuestGoesAwayAtEveryStep(t *testing.T) {
	for _, step := range []string{"direct", "park", "open", "return", "terminate", "close", "restore"} {
		h := newFake(t)
		h.Regs = []source.Registers{{CR4: 1}}
		p := h.process("notepad.exe")
		for _, s := range h.services(2) {
			h.runs[s.DTB] = true
		}
		h.fail = func(s string, _ *source.Action) (*source.Event, error) {
			if s != step {
				return nil, nil
			}
			h.End()
			return nil, source.ErrGone
		}
		rec := h.engine().Kill(context.Background(), p, options())
		late := step == "close" || step == "restore" // its end had been seen
		if rec.Code != finding.OutcomeGone && !(late && rec.Code == finding.OutcomeKilled) {
			t.Errorf("%s: %+v", step, rec)
		}
	}
}

func TestGuardsOfKills(t *testing.T) {
	h := newFake(t)
	h.Regs = []source.Registers{{CR4: 1}}
	e := h.engine()
	kill := func(p *introspect.Process, change func(*Options)) *finding.Kill {
		opt := options()
		if change != nil {
			change(&opt)
		}
		return e.Kill(context.Background(), p, opt)
	}
	want := func(name string, rec *finding.Kill, o finding.Code, reason string) {
		t.Helper()
		if rec.Code != o || !strings.Contains(rec.Reason, reason) {
			t.Errorf("%s: %s, want %s with %q", name, rec.Text(), o, reason)
		}
	}
	notepad := h.process("notepad.exe")
	other := *notepad
	other.Created = other.Created.Add(time.Second)
	find := func(name string) *introspect.Process {
		i := slices.IndexFunc(h.all, func(p introspect.Process) bool { return p.Name == name })
		return &h.all[i]
	}
	want("critical", kill(find("csrss.exe"), nil), finding.OutcomeRefused, "critical")
	want("System", kill(find("System"), nil), finding.OutcomeRefused, "System")
	want("by name", kill(find("winlogon.exe"), nil), finding.OutcomeRefused, "system process")
	want("finished", kill(find("userinit.exe"), nil), finding.OutcomeExited, "by itself")
	want("another one", kill(&other, nil), finding.OutcomeRefused, "reused")
	inferred := *notepad
	inferred.Flags = append(slices.Clone(notepad.Flags), introspect.FlagInferred)
	if why := verdict.Guard(subject.Of(&inferred)); !strings.Contains(why, "inferred") {
		t.Errorf("a process read with an inferred profile: the guard says %q", why)
	}
	want("paused", kill(notepad, func(o *Options) { o.Domain = paused{} }), finding.OutcomeRefused, "paused")
	want("no surrogates", kill(notepad, func(o *Options) { o.Policy.Surrogates = nil }), finding.OutcomePending, "not allowed")
	want("other surrogates", kill(notepad, func(o *Options) { o.Policy.Surrogates = []string{`\Windows\System32\calc.exe`} }), finding.OutcomePending,
		"no process may serve")
	h.Regs = []source.Registers{{CR4: 1 << 23}}
	want("shadow stacks", kill(notepad, nil), finding.OutcomePending, "control-flow enforcement")
	if len(h.log) > 0 {
		t.Errorf("carried out: %v", h.log)
	}

	// It becomes critical between the decision and the action.
	h.Regs = []source.Registers{{CR4: 1}}
	h.runs[notepad.DTB] = true
	h.fail = func(string, *source.Action) (*source.Event, error) {
		f := h.off.Critical
		as := h.g.Memory()
		var b [4]byte
		if err := as.Read(b[:], notepad.EPROCESS+uint64(f.Offset)); err != nil {
			t.Fatal(err)
		}
		h.put(as, notepad.EPROCESS+uint64(f.Offset), binary.LittleEndian.AppendUint32(nil, binary.LittleEndian.Uint32(b[:])|1<<f.BitOffset))
		return nil, nil
	}
	want("critical in the last moment", kill(notepad, nil), finding.OutcomeRefused, "has become a critical process")

	if _, err := New("test", h.g, struct{ source.Source }{h}); !errors.Is(err, ErrNoModule) {
		t.Errorf("a source that only reads: %v", err)
	}
}

// A 32-bit guest is read, and no kill is tried in it whatever its source can do.
func TestKillsIn32BitGuestsAreRefused(t *testing.T) {
	m, err := ntguest.Lay(ntguest.Options{Build: "6.1.7601-x86-pae", Seed: 3, MemoryMiB: 256})
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHost{Guest: sourcetest.New(m, m.Memory), t: t, m: m}
	g, err := introspect.Open(context.Background(), h, winstructtest.With{Store: winstruct.BuiltIn(), Profile: m.Profile()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = New("xp", g, h)
	if !errors.Is(err, introspect.ErrActions32) || !strings.Contains(err.Error(), "domain xp: Windows 6.1.7601 is 32-bit") {
		t.Errorf("New = %v", err)
	}
}

// A handle to another process than was meant ends nobody.
func TestHandleToAnotherProcessEndsNobody(t *testing.T) {
	h := newFake(t)
	h.Regs = []source.Registers{{CR4: 1}}
	p, bystander := h.process("notepad.exe"), h.process("winver.exe")
	services := h.services(1)
	h.runs[services[0].DTB] = true
	before := h.stacks(services)
	h.words[p.EPROCESS] = h.words[bystander.EPROCESS] // its pid was reused
	rec := h.engine().Kill(context.Background(), p, options())
	if rec.Code == finding.OutcomeKilled || count(h.log, "terminate") != 0 || count(h.log, "close") != 1 {
		t.Errorf("%+v, carried out: %v", rec, h.log)
	}
	h.clean(services, before)
}

// A caller who gives up leaves nothing behind.
func TestInterruptedKill(t *testing.T) {
	h := newFake(t)
	h.Regs = []source.Registers{{CR4: 1}}
	p := h.process("notepad.exe")
	services := h.services(2)
	for _, s := range services {
		h.runs[s.DTB] = true
	}
	before := h.stacks(services)
	ctx, cancel := context.WithCancel(context.Background())
	h.fail = func(step string, _ *source.Action) (*source.Event, error) {
		if step == "open" {
			cancel()
		}
		return nil, nil
	}
	rec := h.engine().Kill(ctx, p, options())
	if rec.Code == "" || rec.Code == finding.OutcomeKilled && rec.ExitStatus == nil {
		t.Errorf("%+v", rec)
	}
	h.clean(services, before)
}

func TestPlanTouchesNothing(t *testing.T) {
	h := newFake(t)
	h.Regs = []source.Registers{{CR4: 1}}
	p := h.process("notepad.exe")
	opt := options()
	opt.DryRun = true
	rec := h.engine().Kill(context.Background(), p, opt)
	text := strings.Join(rec.Plan, "\n")
	if rec.Code != finding.OutcomePlanned || !strings.Contains(text, ntTerminateProcess) || !strings.Contains(text, "else by surrogate svchost.exe") ||
		len(h.log) > 0 {
		t.Errorf("%+v, carried out: %v", rec, h.log)
	}
}
