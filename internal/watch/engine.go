package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"vmav.dev/vmav/internal/clam"
)

// engine is a ClamAV engine that is opened again when it went away. Scans wait for it, so
// nothing is lost while clamd restarts.
type engine struct {
	opt clam.Options
	log *slog.Logger

	mu       sync.Mutex
	current  *clam.Engine
	identity string    // of current
	asked    time.Time // when the identity was asked for
	err      error     // why there is no engine
	closed   bool
	opening  chan struct{} // closed when the present attempt to open is over; nil for none
}

// maxDeaths is how often clamd may go away while it scans one file, until the scan of that
// file fails. The file may be the cause.
const maxDeaths = 3

// errNoEngine is the error of an engine that was closed.
var errNoEngine = fmt.Errorf("the service ends: %w", os.ErrClosed)

func newEngine(opt clam.Options, log *slog.Logger) *engine {
	return &engine{opt: opt, log: log}
}

// get returns the engine. It waits until there is one.
func (e *engine) get(ctx context.Context) (*clam.Engine, error) {
	wait := 100 * time.Millisecond
	for {
		e.mu.Lock()
		if e.closed {
			e.mu.Unlock()
			return nil, errNoEngine
		}
		if e.current != nil {
			c := e.current
			e.mu.Unlock()
			return c, nil
		}
		opening := e.opening
		if opening == nil {
			opening = make(chan struct{})
			e.opening = opening
			go e.open(opening)
		}
		e.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-opening:
		}
		e.mu.Lock()
		failed := e.current == nil
		e.mu.Unlock()
		if !failed {
			continue
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, 10*time.Second)
	}
}

// open makes one attempt to open an engine.
func (e *engine) open(over chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c, err := clam.Open(ctx, e.opt)
	e.mu.Lock()
	defer e.mu.Unlock()
	defer close(over)
	e.opening = nil
	if err != nil {
		if e.err == nil || e.err.Error() != err.Error() {
			e.log.Error("no engine to scan with", "error", err)
		}
		e.err = err
		return
	}
	if e.closed {
		go c.Close()
		return
	}
	e.current, e.err, e.identity = c, nil, ""
	info := c.Info()
	if !info.Private && e.opt.Socket == "" {
		e.opt.Socket = info.Socket // the host has a clamd: do not use a private one while it restarts
	}
	e.log.Info("engine", "version", info.Version, "database", info.Database, "private", info.Private)
}

// lost forgets an engine that went away.
func (e *engine) lost(c *clam.Engine, why error) {
	e.mu.Lock()
	mine := e.current == c
	if mine {
		e.current, e.err = nil, why
	}
	e.mu.Unlock()
	if mine {
		e.log.Warn("the engine went away", "error", why)
		c.Close()
	}
}

// errOutdated is the reason why a private engine is replaced.
var errOutdated = errors.New("its signature files have changed")

// checkEvery is how often the engine is asked whether it is there, and with which
// signatures.
const checkEvery = 5 * time.Second

// tend keeps an engine ready, so that the next scan need not wait for one. It logs when the
// signatures change.
func (e *engine) tend(ctx context.Context) {
	var was clam.Info
	for {
		c, err := e.get(ctx)
		if err != nil {
			return
		}
		cctx, cancel := context.WithTimeout(ctx, 6*checkEvery) // it may be busy
		now, err := c.Check(cctx)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			e.lost(c, err)
			continue
		case c.Outdated():
			e.lost(c, errOutdated)
			continue
		case was.Version != "" && (now.Version != was.Version || now.Database != was.Database || !now.BuildTime.Equal(was.BuildTime)):
			e.log.Info("the engine has other signatures", "version", now.Version, "database", now.Database)
		}
		was = now
		select {
		case <-ctx.Done():
			return
		case <-time.After(checkEvery):
		}
	}
}

// Identity implements scan.Identified, so that results count only with the signatures that
// they came from. While the engine is away, it returns the identity of the last one, whose
// results are still good. Before the first engine is open it waits, as a scan would.
func (e *engine) Identity(ctx context.Context) string {
	e.mu.Lock()
	c, id, age := e.current, e.identity, time.Since(e.asked)
	e.mu.Unlock()
	if id != "" && (c == nil || age < identityLife) {
		return id
	}
	if c == nil {
		var err error
		if c, err = e.get(ctx); err != nil {
			return ""
		}
	}
	id = c.Identity(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.current == c {
		e.identity, e.asked = id, time.Now()
	}
	return id
}

// identityLife is how long an identity is believed. Each scan asks for it, and a scan of
// what is new in a guest should not wait for it.
const identityLife = 2 * time.Second

// state returns the engine's version, or the reason why there is none.
func (e *engine) state() (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.current != nil {
		return e.current.Info().Version, nil
	}
	if e.err == nil {
		return "", errors.New("being opened")
	}
	return "", e.err
}

// Close closes the engine. Scans that wait for one fail.
func (e *engine) Close() {
	e.mu.Lock()
	c := e.current
	e.current, e.closed = nil, true
	e.mu.Unlock()
	if c != nil {
		c.Close()
	}
}

// Scan implements scan.Engine. It waits for clamd if that is away.
func (e *engine) Scan(ctx context.Context, name string, data []byte) (clam.Result, error) {
	for deaths := 0; ; {
		c, err := e.get(ctx)
		if err != nil {
			return clam.Result{}, err
		}
		res, err := c.Scan(ctx, name, data)
		if err == nil || !errors.Is(err, clam.ErrEngineGone) {
			return res, err
		}
		e.lost(c, err)
		if deaths++; deaths == maxDeaths {
			return clam.Result{}, fmt.Errorf("scan %s: clamd went away %d times while it did", name, deaths)
		}
	}
}

// slotted is the engine with a bound on the scans that it has at once.
type slotted struct {
	*engine
	budget *budget
	urgent bool // the scans are not a sweep's
}

// Scan implements scan.Engine.
func (s slotted) Scan(ctx context.Context, name string, data []byte) (clam.Result, error) {
	if !s.urgent {
		// This is the only place where sweeps are held back.
		if err := s.budget.pace(ctx); err != nil {
			return clam.Result{}, err
		}
		if err := acquire(ctx, s.budget.bulk); err != nil {
			return clam.Result{}, err
		}
		defer release(s.budget.bulk)
	}
	if err := acquire(ctx, s.budget.slots); err != nil {
		return clam.Result{}, err
	}
	defer release(s.budget.slots)
	begin := time.Now()
	res, err := s.engine.Scan(ctx, name, data)
	s.budget.scanned(time.Since(begin))
	return res, err
}
