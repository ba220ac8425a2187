package kill

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
)

// grace is how long a parked surrogate may take to make its calls and to get its context
// back, whatever the kill's own deadline or caller.
const grace = 30 * time.Second

// maxTries is how many surrogates are used for one kill, if those before do not get what
// they ask for.
const maxTries = 3

// surrogate lets a service end the target. direct is the reason why a thread of the target
// could not. surrogate returns false if no service could be used; the outcome may then be
// set or not.
func (k *attempt) surrogate(ctx context.Context, ctl *control, lib *library, direct error) bool {
	if len(k.opt.Policy.Surrogates) == 0 {
		k.end(finding.OutcomePending, "%v; surrogates are not allowed", direct)
		return false
	}
	var excuses []string
	cands, err := k.candidates(ctx, ctl, lib, func(why string) { excuses = append(excuses, why) })
	switch {
	case err != nil && (errors.Is(err, source.ErrGone) || ctx.Err() != nil):
		k.fail(finding.OutcomeFailed, "look for a surrogate", err)
		return false
	case err != nil:
		k.end(finding.OutcomePending, "%v; no surrogate: %v", direct, err)
		return false
	case len(cands) == 0:
		k.end(finding.OutcomePending, "%v; no process may serve as surrogate: %s", direct, reasons(excuses))
		return false
	}
	for try := 0; try < maxTries; {
		c, ev, err := k.park(ctx, ctl, cands, &excuses)
		if err != nil {
			switch {
			case errors.Is(err, source.ErrGone):
				k.fail(finding.OutcomeFailed, "wait for a surrogate", err)
			case ctx.Err() != nil:
				k.gaveUp(ctx, fmt.Errorf("%w; of %d surrogates none came: %s", direct, len(cands), reasons(excuses)))
			case try > 0:
				k.end(finding.OutcomeFailed, "surrogates: %s", reasons(excuses))
			default:
				k.end(finding.OutcomePending, "%v; no surrogate: %s", direct, reasons(append(excuses, err.Error())))
			}
			return false
		}
		done, used := k.use(ctx, c, ev)
		if done {
			return true
		}
		if used {
			try++
		}
		excuses = append(excuses, fmt.Sprintf("%s[%d]: %s", c.p.Name, c.p.PID, k.rec.Reason))
		k.rec.Outcome = finding.Outcome{}
		cands = slices.DeleteFunc(cands, func(o *candidate) bool { return o == c })
	}
	k.end(finding.OutcomeFailed, "surrogates: %s", reasons(excuses))
	return false
}

// park asks all candidates to come and returns the first whose thread does. It releases the
// others at once.
func (k *attempt) park(ctx context.Context, ctl *control, cands []*candidate, excuses *[]string) (*candidate, source.Event, error) {
	pool, err := arm(ctx, ctl, cands)
	if err != nil {
		return nil, source.Event{}, err
	}
	c, ev, err := pool.next(ctx)
	pool.release()
	*excuses = append(*excuses, pool.excuses...)
	return c, ev, err
}

// reasons joins the reasons against several processes. It leaves out those beyond what
// people read.
func reasons(all []string) string {
	const most = 4
	if len(all) > most {
		return fmt.Sprintf("%s; and %d more", strings.Join(all[:most], "; "), len(all)-most)
	}
	return strings.Join(all, "; ")
}

// pool is the services that were asked to come.
type pool struct {
	ctl     *control
	events  chan source.Event
	armed   map[uint64]*candidate // by the cookie of the action that saves the context
	excuses []string
}

// arm asks every candidate to come. A candidate that cannot be asked becomes an excuse.
// Only a guest that has gone is an error.
func arm(ctx context.Context, ctl *control, cands []*candidate) (*pool, error) {
	p := &pool{ctl: ctl, events: make(chan source.Event, len(cands)), armed: make(map[uint64]*candidate)}
	for _, c := range cands {
		a := c.on(source.ActionRedirect, ctx)
		a.Flags |= source.SaveContext | source.InCode64
		a.Set, a.RIP = source.SetRIP, c.park
		cookie, err := ctl.start(a, p.events)
		if errors.Is(err, source.ErrGone) {
			return nil, err
		}
		if err != nil {
			p.excuses = append(p.excuses, fmt.Sprintf("%s[%d]: %v", c.p.Name, c.p.PID, err))
			continue
		}
		p.armed[cookie] = c
	}
	return p, nil
}

// next waits for the next service that comes. Its thread is then parked.
func (p *pool) next(ctx context.Context) (*candidate, source.Event, error) {
	for len(p.armed) > 0 {
		ev, err := p.ctl.wait(ctx, p.events, remaining(ctx))
		if err != nil {
			return nil, ev, err
		}
		c := p.armed[ev.Cookie]
		delete(p.armed, ev.Cookie)
		if c == nil {
			continue
		}
		if ev.Kind == source.EventApplied {
			return c, ev, nil
		}
		p.excuses = append(p.excuses, fmt.Sprintf("%s[%d]: %v", c.p.Name, c.p.PID, notApplied(ev)))
	}
	return nil, source.Event{}, errors.New("none is left")
}

// release releases the services that were not needed. Those that came in the meantime get
// their context back.
func (p *pool) release() {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	late := make(map[uint64]bool)
	for cookie := range p.armed {
		if pending, err := p.ctl.ctl.Cancel(cookie); err == nil && !pending {
			late[cookie] = true
		}
	}
	for len(late) > 0 {
		ev, err := p.ctl.wait(ctx, p.events, 0)
		if err != nil {
			return // the module gives back the rest when the control is closed
		}
		if c := p.armed[ev.Cookie]; late[ev.Cookie] && c != nil && ev.Kind == source.EventApplied {
			t := &thread{candidate: c, saved: ev.Cookie, before: ev}
			t.teb = ev.TEB
			_ = t.resume(ctx) // if this fails, likewise
		}
		delete(late, ev.Cookie)
	}
}

// use lets a parked service make the calls. done says that the outcome is final. used says
// that the service has made a call.
func (k *attempt) use(ctx context.Context, c *candidate, ev source.Event) (done, used bool) {
	// The thread must get its context back even if the caller has given up or the kill's
	// own time is over.
	gctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	t := &thread{candidate: c, saved: ev.Cookie, before: ev}
	t.teb = ev.TEB
	k.rec.Surrogates = append(k.rec.Surrogates, finding.Surrogate{Process: ProcessOf(c.p)})
	t.rec = &k.rec.Surrogates[len(k.rec.Surrogates)-1]
	err := t.prepare(gctx)
	if err == nil {
		err = k.terminate(ctx, gctx, t)
	}
	t.rec.Context = t.giveBack(gctx)
	if err != nil {
		t.rec.Error = err.Error()
	}
	switch {
	case errors.Is(err, source.ErrGone):
		k.fail(finding.OutcomeFailed, "use a surrogate", err)
		return true, true
	case errors.Is(err, errGuard) && k.guarded():
		return true, true
	case err != nil && k.rec.Applied == nil && ctx.Err() != nil:
		k.gaveUp(ctx, err)
		return true, true
	case err != nil && k.rec.Applied == nil:
		k.end(finding.OutcomeFailed, "%v", err)
		return false, len(t.rec.Calls) > 0
	case k.rec.Code == "" && !k.awaitEnd(ctx):
		k.end(finding.OutcomeFailed, "%s[%d] ended it, but it has not ended in %v", c.p.Name, c.p.PID, k.opt.Timeout)
	}
	return true, true
}

// processTerminate is the access right PROCESS_TERMINATE.
const processTerminate = 1

// terminate makes the three calls. It closes the handle whatever happens in between.
func (k *attempt) terminate(ctx, gctx context.Context, t *thread) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	status, err := t.call(gctx, ntOpenProcess, k.guards.Identity(), t.at(frameHandle), processTerminate, t.at(frameAttributes), t.at(frameClientID))
	if err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("%s answered %v", ntOpenProcess, finding.NTStatus(status))
	}
	handle, err := t.handle()
	if err != nil {
		return err
	}
	err = k.terminateBy(ctx, gctx, t, handle)
	if closed, cerr := t.call(gctx, ntClose, nil, handle); cerr != nil {
		err = errors.Join(err, cerr)
	} else if closed != 0 {
		err = errors.Join(err, fmt.Errorf("%s answered %v", ntClose, finding.NTStatus(closed)))
	}
	return err
}

// terminateBy ends the target through a handle, if the handle refers to the target. Its PID
// may have passed to another process before the service opened it.
func (k *attempt) terminateBy(ctx, gctx context.Context, t *thread, handle uint64) error {
	k.guest.Refresh()
	object, still, err := k.guest.HandleObject(t.p, handle)
	if err != nil {
		return err
	}
	if object != k.id.EPROCESS {
		return fmt.Errorf("%s gave a handle to the object at %#x, not to the target: %w", ntOpenProcess, object, errGuard)
	}
	guards := []source.Guard{still, k.guards.Created, k.guards.Alive}
	status, err := t.call(gctx, ntTerminateProcess, guards, handle, uint64(Status))
	if err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("%s answered %v", ntTerminateProcess, finding.NTStatus(status))
	}
	k.rec.Method, k.rec.Applied = finding.MethodSurrogate, k.since()
	// While the handle is open, the process object stays. This is the best time to see the end.
	wctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	k.awaitEnd(wctx)
	return nil
}

// handle reads the handle that NtOpenProcess returned.
func (t *thread) handle() (uint64, error) {
	var b [8]byte
	if err := t.read(b[:], t.at(frameHandle)); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// suitable fails if the stack of the thread that came may not be used. The thread's TEB
// must be its own, and the thread must be on the stack that its TEB names.
func (t *thread) suitable() (introspect.TEB, error) {
	teb, err := t.guest.ReadTEB(t.p, t.before.TEB)
	switch rsp := t.before.GPR[source.RSP]; {
	case err != nil:
		return teb, err
	case teb.Self != t.before.TEB || teb.PID != t.p.PID:
		return teb, fmt.Errorf("the TEB at %#x is not that of a thread of it", t.before.TEB)
	case rsp > teb.StackBase || rsp < teb.StackLimit:
		return teb, fmt.Errorf("thread %d is at %#x, outside its stack %#x-%#x", teb.TID, rsp, teb.StackLimit, teb.StackBase)
	}
	return teb, nil
}
