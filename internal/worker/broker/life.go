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

// layoutPeriod bounds how long a worker may map guest memory in an old layout.
const layoutPeriod = 20 * time.Millisecond

// begin starts to answer the worker's questions, until the worker has ended.
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

// follow keeps the layout of guest memory up to date. A worker that maps the memory does
// not notice a change of the layout. A batch read does notice it, and removes pages that
// are no longer guest memory. This is also done for a worker that has nothing to do,
// because it may have been taken over.
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

// serve answers the questions of one lane until the worker is gone. It ends a worker that
// asks what no worker of ours asks.
func (c *child) serve(l *wire.Lane, v *laneServer) {
	for {
		q, err := l.Receive()
		if err != nil {
			// Either the other end is closed, which the process's state explains, or the
			// message is out of bounds.
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
			return // the worker has ended in the meantime
		}
	}
}

// errGone ends the service of a worker that has ended.
var errGone = errors.New("the worker is gone")

// answer answers one question. It returns an error if no worker of ours asks this.
func (c *child) answer(v *laneServer, q wire.Frame) (wire.Frame, error) {
	if q.Code == wire.AskJob {
		return c.handJob(v, q)
	}
	c.mu.Lock()
	if c.job == nil {
		c.mu.Unlock()
		return wire.Frame{}, errors.New("a question that is part of no job")
	}
	v.job = c.job
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
	// Nobody uses the job any longer.
	j := v.job
	c.job = nil
	for _, v := range c.servers {
		v.forget()
	}
	j.result, j.done = *r, true
	close(j.over)
	return a, nil
}

// handJob gives the worker a job once there is one.
func (c *child) handJob(v *laneServer, q wire.Frame) (wire.Frame, error) {
	abi, err := wire.ParseGreeting(q)
	if err != nil {
		return wire.Frame{}, err
	}
	c.mu.Lock()
	if c.job != nil || c.asks {
		c.mu.Unlock()
		return wire.Frame{}, errors.New("a question for a second job")
	}
	c.asks = true
	c.mu.Unlock()
	var j *job
	select {
	case j = <-c.jobs:
	case <-c.exited:
		return wire.Frame{}, errGone
	}
	j.greeted(c.user, abi)
	c.note(abi)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asks, c.job, c.heard = false, j, time.Now()
	return wire.Frame{N: copy(v.window, j.text)}, nil
}

// do lets the worker do a job, and ends the worker if it must. After it has returned, only
// the caller uses the job.
func (c *child) do(ctx context.Context, j *job, silence, total time.Duration) {
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	j.ctx = work
	begin := time.Now()
	c.mu.Lock()
	c.heard = begin
	c.mu.Unlock()
	c.jobs <- j
	tick := time.NewTicker(min(silence, total)/8 + 1)
	defer tick.Stop()
	interrupted := ctx.Done()
	for {
		select {
		case <-j.over:
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

// end ends the worker and notes the reason.
func (c *child) end(why error) {
	c.mu.Lock()
	if c.ended == nil {
		c.ended = why
	}
	c.mu.Unlock()
	_ = c.cmd.Process.Kill()
}

// living reports whether the worker can do another job.
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

// endReason waits until the worker has ended, and returns the reason.
func (c *child) endReason() error {
	<-c.exited
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return c.ended
	}
	return c.exitError()
}

// stop ends the worker if it has not ended, and releases what the broker had for it.
func (c *child) stop() {
	_ = c.cmd.Process.Kill()
	<-c.exited
	c.serving.Wait()
	c.release()
}

// used returns the processor time of the process, or 0 after it has ended.
func (c *child) used() time.Duration {
	// The clock of a process by its id: clock_getcpuclockid(3), CPUCLOCK_SCHED in
	// include/linux/posix-timers_types.h.
	var t unix.Timespec
	if unix.ClockGettime(int32(^c.cmd.Process.Pid<<3|2), &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
