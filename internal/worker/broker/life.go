package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/worker/wire"
)

// task is a job for a worker.
type task struct {
	*job
	text []byte // as it is handed out
}

// layoutPeriod is how long a worker may map guest memory as it was laid out before.
const layoutPeriod = 20 * time.Millisecond

// begin has the broker answer the worker, until that has ended.
func (c *child) begin() {
	for _, l := range c.lanes {
		v := newLaneServer(l.Window)
		c.servers = append(c.servers, v)
		c.serving.Add(1)
		go func() {
			defer c.serving.Done()
			c.serve(l, v)
		}()
	}
	if c.shared {
		c.serving.Add(1)
		go func() {
			defer c.serving.Done()
			c.follow()
		}()
	}
}

// follow keeps the layout of guest memory. A worker that maps it does not see that change:
// a batch does, and has the pages taken away that are guest memory no more. This is so for
// a worker that has nothing to do as well, which may be one that was taken over.
func (c *child) follow() {
	t := time.NewTicker(layoutPeriod)
	defer t.Stop()
	for {
		select {
		case <-c.exited:
			return
		case <-t.C:
			_ = source.ReadBatch(c.src, nil)
		}
	}
}

// serve answers the questions of one lane until the worker is gone. A worker that asks
// what none of ours does is ended.
func (c *child) serve(l *wire.Lane, v *laneServer) {
	for {
		q, err := l.Receive()
		if err != nil {
			// The other end is closed, which the process's state explains; or it is a
			// message out of bounds.
			if !errors.Is(err, io.EOF) {
				c.end(fmt.Errorf("%w: it sent %w", ErrMisbehaved, err))
			}
			return
		}
		a, err := c.answer(v, q)
		if errors.Is(err, errGone) {
			return
		}
		if err != nil {
			c.end(fmt.Errorf("%w: it sent %w", ErrMisbehaved, err))
			return
		}
		if l.Send(a) != nil {
			return // gone meanwhile
		}
	}
}

// errGone ends the service of a worker that has ended.
var errGone = errors.New("the worker is gone")

// answer serves one question. An error means that no worker of ours would ask it.
func (c *child) answer(v *laneServer, q wire.Frame) (wire.Frame, error) {
	if q.Code == wire.AskJob {
		return c.handJob(v, q)
	}
	c.mu.Lock()
	if c.task == nil {
		c.mu.Unlock()
		return wire.Frame{}, errors.New("a question that is part of no job")
	}
	v.job = c.task.job
	c.open++
	c.mu.Unlock()
	a, r, err := v.answer(q)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	c.heard = time.Now()
	if r == nil || err != nil {
		return a, err
	}
	if c.open > 0 {
		return wire.Frame{}, errors.New("its result, and has other questions")
	}
	// Nobody uses the job any more.
	j := v.job
	c.task = nil
	for _, v := range c.servers {
		v.forget()
	}
	j.result, j.done = *r, true
	close(j.over)
	return a, nil
}

// handJob gives the worker a job, when there is one.
func (c *child) handJob(v *laneServer, q wire.Frame) (wire.Frame, error) {
	abi, err := wire.ParseGreeting(q)
	if err != nil {
		return wire.Frame{}, err
	}
	c.mu.Lock()
	if c.task != nil || c.asks {
		c.mu.Unlock()
		return wire.Frame{}, errors.New("a question for a second job")
	}
	c.asks = true
	c.mu.Unlock()
	var t task
	select {
	case t = <-c.jobs:
	case <-c.exited:
		return wire.Frame{}, errGone
	}
	t.greeted(c.user, abi)
	c.note(abi)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asks, c.task, c.heard = false, &t, time.Now()
	return wire.Frame{N: copy(v.window, t.text)}, nil
}

// do has the worker do a job, and ends it where it must. Behind it nobody but the caller
// uses the job.
func (c *child) do(ctx context.Context, t task, silence, total time.Duration) {
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	t.ctx = work
	begin := time.Now()
	c.mu.Lock()
	c.heard = begin
	c.mu.Unlock()
	c.jobs <- t
	tick := time.NewTicker(min(silence, total)/8 + 1)
	defer tick.Stop()
	interrupted := ctx.Done()
	for {
		select {
		case <-t.over:
			return
		case <-c.exited:
			cancel()
			c.serving.Wait()
			return
		case <-interrupted:
			interrupted = nil
			c.end(ctx.Err())
		case <-tick.C:
			c.mu.Lock()
			quiet := time.Since(c.heard)
			busy := c.open > 0
			c.mu.Unlock()
			switch {
			case !busy && quiet > silence:
				c.end(fmt.Errorf("%w: it asked for nothing in %v", ErrStuck, silence))
			case time.Since(begin) > total:
				c.end(fmt.Errorf("%w: its guest took longer than %v", ErrStuck, total))
			}
		}
	}
}

// end ends the worker for a reason.
func (c *child) end(why error) {
	c.mu.Lock()
	if c.ended == nil {
		c.ended = why
	}
	c.mu.Unlock()
	_ = c.cmd.Process.Kill()
}

// living tells whether the worker can do another job.
func (c *child) living() bool {
	select {
	case <-c.exited:
		return false
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended == nil
}

// endReason is the reason of the worker's end. It waits for that.
func (c *child) endReason() error {
	<-c.exited
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return c.ended
	}
	return c.exitError()
}

// stop ends the worker, unless it has ended, and gives back what it was talked to through.
func (c *child) stop() {
	_ = c.cmd.Process.Kill()
	<-c.exited
	c.serving.Wait()
	c.release()
}

// used is the processor time that the process took, 0 once it has ended.
func (c *child) used() time.Duration {
	// The clock of a process by its id: clock_getcpuclockid(3), CPUCLOCK_SCHED in
	// include/linux/posix-timers_types.h.
	var t unix.Timespec
	if unix.ClockGettime(int32(^c.cmd.Process.Pid<<3|2), &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
