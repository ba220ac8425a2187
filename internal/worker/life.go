package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// task is a job for a worker.
type task struct {
	session *session
	job     []byte // as it is handed out
}

// layoutPeriod is how long a worker may map guest memory as it was laid out before.
const layoutPeriod = 20 * time.Millisecond

// begin has the broker answer the worker, until that has ended.
func (p *process) begin() {
	for _, l := range p.lanes {
		v := newServed(l.window)
		p.served = append(p.served, v)
		p.serving.Add(1)
		go func() {
			defer p.serving.Done()
			p.serve(l, v)
		}()
	}
	if p.shared {
		p.serving.Add(1)
		go func() {
			defer p.serving.Done()
			p.follow()
		}()
	}
}

// follow keeps the layout of guest memory. A worker that maps it does not see that change:
// a batch does, and has the pages taken away that are guest memory no more. This is so for
// a worker that has nothing to do as well, which may be one that was taken over.
func (p *process) follow() {
	t := time.NewTicker(layoutPeriod)
	defer t.Stop()
	for {
		select {
		case <-p.exited:
			return
		case <-t.C:
			_ = source.ReadBatch(p.src, nil)
		}
	}
}

// serve answers the questions of one lane until the worker is gone. A worker that asks
// what none of ours does is ended.
func (p *process) serve(l *lane, v *served) {
	for {
		q, err := l.receive()
		if err != nil {
			// The other end is closed, which the process's state explains; or it is a
			// message out of bounds.
			if !errors.Is(err, io.EOF) {
				p.end(fmt.Errorf("%w: it sent %w", ErrMisbehaved, err))
			}
			return
		}
		a, err := p.answer(v, q)
		if errors.Is(err, errGone) {
			return
		}
		if err != nil {
			p.end(fmt.Errorf("%w: it sent %w", ErrMisbehaved, err))
			return
		}
		if l.send(a) != nil {
			return // gone meanwhile
		}
	}
}

// errGone ends the service of a worker that has ended.
var errGone = errors.New("the worker is gone")

// answer serves one question. An error means that no worker of ours would ask it.
func (p *process) answer(v *served, q frame) (frame, error) {
	if q.code == askJob {
		return p.hand(v, q)
	}
	p.mu.Lock()
	if p.task == nil {
		p.mu.Unlock()
		return frame{}, errors.New("a question that is part of no job")
	}
	v.session = p.task.session
	p.open++
	p.mu.Unlock()
	a, r, err := v.answer(q)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	p.heard = time.Now()
	if r == nil || err != nil {
		return a, err
	}
	if p.open > 0 {
		return frame{}, errors.New("its result, and has other questions")
	}
	// Nobody uses the session any more.
	s := v.session
	p.task = nil
	for _, v := range p.served {
		v.forget()
	}
	s.result, s.done = *r, true
	close(s.over)
	return a, nil
}

// hand gives the worker a job, when there is one.
func (p *process) hand(v *served, q frame) (frame, error) {
	abi, err := parseGreeting(q)
	if err != nil {
		return frame{}, err
	}
	p.mu.Lock()
	if p.task != nil || p.asks {
		p.mu.Unlock()
		return frame{}, errors.New("a question for a second job")
	}
	p.asks = true
	p.mu.Unlock()
	var t task
	select {
	case t = <-p.jobs:
	case <-p.exited:
		return frame{}, errGone
	}
	t.session.greeted(p.user, abi)
	p.note(abi)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asks, p.task, p.heard = false, &t, time.Now()
	return frame{n: copy(v.window, t.job)}, nil
}

// do has the worker do a job, and ends it where it must. Behind it nobody but the caller
// uses the session.
func (p *process) do(ctx context.Context, s *session, job []byte, silence, total time.Duration) {
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ctx = work
	begin := time.Now()
	p.mu.Lock()
	p.heard = begin
	p.mu.Unlock()
	p.jobs <- task{s, job}
	tick := time.NewTicker(min(silence, total)/8 + 1)
	defer tick.Stop()
	interrupted := ctx.Done()
	for {
		select {
		case <-s.over:
			return
		case <-p.exited:
			cancel()
			p.serving.Wait()
			return
		case <-interrupted:
			interrupted = nil
			p.end(ctx.Err())
		case <-tick.C:
			p.mu.Lock()
			quiet := time.Since(p.heard)
			busy := p.open > 0
			p.mu.Unlock()
			switch {
			case !busy && quiet > silence:
				p.end(fmt.Errorf("%w: it asked for nothing in %v", ErrStuck, silence))
			case time.Since(begin) > total:
				p.end(fmt.Errorf("%w: its guest took longer than %v", ErrStuck, total))
			}
		}
	}
}

// end ends the worker for a reason.
func (p *process) end(why error) {
	p.mu.Lock()
	if p.ended == nil {
		p.ended = why
	}
	p.mu.Unlock()
	_ = p.cmd.Process.Kill()
}

// living tells whether the worker can do another job.
func (p *process) living() bool {
	select {
	case <-p.exited:
		return false
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended == nil
}

// why is the reason of the worker's end. It waits for that.
func (p *process) why() error {
	<-p.exited
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended != nil {
		return p.ended
	}
	return p.death()
}

// stop ends the worker, unless it has ended, and gives back what it was talked to through.
func (p *process) stop() {
	_ = p.cmd.Process.Kill()
	<-p.exited
	p.serving.Wait()
	p.release()
}

// used is the processor time that the process took, 0 once it has ended.
func (p *process) used() time.Duration {
	// The clock of a process by its id: clock_getcpuclockid(3), CPUCLOCK_SCHED in
	// include/linux/posix-timers_types.h.
	var t unix.Timespec
	if unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|2), &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
