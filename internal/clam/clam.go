// Package clam scans rebuilt files with a ClamAV daemon. It speaks clamd's session
// protocol, passes what is to be scanned as sealed memory files, and runs a private
// clamd of its own where the host has none.
//
// What the daemon did not look at in full is never clean: limits, errors and files
// over its size limit come back as Skipped.
//
// The package knows nothing of guests and imports no other package of the project.
package clam

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Errors a caller decides on; test with errors.Is.
var (
	// ErrEngineGone reports that clamd went away while it was needed.
	ErrEngineGone = errors.New("clamd is gone")
	// ErrNoEngine reports that no clamd answers and none could be started.
	ErrNoEngine = errors.New("no ClamAV engine")
)

// DefaultSocket is where Debian's clamd listens.
const DefaultSocket = "/run/clamav/clamd.ctl"

// Options choose the engine.
type Options struct {
	// Socket is clamd's address: a path, or host:port. "" means DefaultSocket.
	Socket string
	// Databases are signature files or directories of them for a private engine.
	// With any of them the host's clamd is not asked: it has databases of its own.
	Databases []string
	// TempDir holds the private engine's files; "" for the user's runtime directory,
	// else the system's temporary one.
	TempDir string
	// Progress is told, in words, what takes long. It may be nil.
	Progress func(string)
}

// Info says which engine scans, and how old its signatures are.
type Info struct {
	Version   string    `json:"version"`              // "ClamAV 1.4.6"
	Database  string    `json:"database,omitempty"`   // version of the daily database
	BuildTime time.Time `json:"build_time,omitempty"` // of the database; zero where unknown
	Private   bool      `json:"private"`
	Socket    string    `json:"socket"`
}

// Age is how old the database is, and whether that is known.
func (i Info) Age(now time.Time) (time.Duration, bool) {
	return now.Sub(i.BuildTime), !i.BuildTime.IsZero()
}

// Result is what the engine said of one file.
type Result struct {
	Signature string // what was found, "" for nothing
	Skipped   string // why the file was not looked at in full, "" when it was
}

// Engine is a ClamAV daemon ready to scan. It is safe for concurrent use; the caller
// closes it.
type Engine struct {
	addr    string
	maxFile uint64 // bytes the daemon scans of a file
	info    Info
	daemon  *daemon // nil unless private

	mu      sync.Mutex
	session *session
	closed  bool
}

// Open connects to the host's clamd or, where none answers or databases are given,
// starts a private one and waits until it is ready.
func Open(ctx context.Context, opt Options) (*Engine, error) {
	addr := opt.Socket
	if addr == "" {
		addr = DefaultSocket
	}
	if len(opt.Databases) == 0 {
		info, err := version(ctx, addr)
		if err == nil {
			info.Socket = addr
			return &Engine{addr: addr, info: info, maxFile: systemMaxFile(configPath)}, nil
		}
		if opt.Socket != "" {
			return nil, fmt.Errorf("%w: clamd at %s: %w", ErrNoEngine, addr, err)
		}
	}
	d, err := startDaemon(ctx, opt)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoEngine, err)
	}
	info, err := version(ctx, d.socket)
	if err != nil {
		err = errors.Join(err, d.stop())
		return nil, fmt.Errorf("%w: private clamd: %w", ErrNoEngine, err)
	}
	info.Private, info.Socket = true, d.socket
	return &Engine{addr: d.socket, info: info, daemon: d, maxFile: privateMaxFile}, nil
}

// Info says which engine this is.
func (e *Engine) Info() Info { return e.info }

// Check asks the daemon who it is now: its signatures may be others than at the start. The
// error wraps ErrEngineGone.
func (e *Engine) Check(ctx context.Context) (Info, error) {
	now, err := version(ctx, e.addr)
	if err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrEngineGone, err)
	}
	now.Private, now.Socket = e.info.Private, e.info.Socket
	return now, nil
}

// Close ends the session, and the daemon where it is private.
func (e *Engine) Close() error {
	e.mu.Lock()
	s := e.session
	e.session, e.closed = nil, true
	e.mu.Unlock()
	if s != nil {
		s.close(os.ErrClosed)
	}
	if e.daemon != nil {
		return e.daemon.stop()
	}
	return nil
}

// Scan has the engine look at data, which name describes in errors. The error says
// that there is no result at all; it wraps ErrEngineGone where clamd went away.
func (e *Engine) Scan(ctx context.Context, name string, data []byte) (Result, error) {
	if uint64(len(data)) > e.maxFile {
		return Result{Skipped: fmt.Sprintf("%d bytes are more than the engine's MaxFileSize of %d", len(data), e.maxFile)}, nil
	}
	f, err := sealed(data)
	if err != nil {
		return Result{}, fmt.Errorf("scan %s: %w", name, err)
	}
	defer f.Close()
	s, err := e.connect(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("scan %s: %w", name, e.because(err))
	}
	reply, err := s.scan(ctx, f)
	if err != nil {
		e.drop(s)
		return Result{}, fmt.Errorf("scan %s: %w", name, e.because(err))
	}
	res, err := parseResult(reply)
	if err != nil {
		return Result{}, fmt.Errorf("scan %s: %w", name, err)
	}
	return res, nil
}

// because adds what the private daemon last said to an error of its session.
func (e *Engine) because(err error) error {
	if e.daemon == nil || !errors.Is(err, ErrEngineGone) {
		return err
	}
	if last := e.daemon.lastWords(); last != "" {
		return fmt.Errorf("%w (it last said: %s)", err, last)
	}
	return err
}

func (e *Engine) connect(ctx context.Context) (*session, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, os.ErrClosed
	}
	if e.session != nil {
		return e.session, nil
	}
	s, err := newSession(ctx, e.addr)
	if err != nil {
		return nil, err
	}
	e.session = s
	return s, nil
}

func (e *Engine) drop(s *session) {
	e.mu.Lock()
	if e.session == s && s.dead() {
		e.session = nil
	}
	e.mu.Unlock()
}

// parseResult reads what clamd says of one descriptor: "fd[10]: OK", "fd[10]:
// Eicar-Signature FOUND", "fd[10]: … ERROR". A finding named Heuristics.Limits.… is
// clamd saying that it did not look at everything (AlertExceedsMax).
func parseResult(reply string) (Result, error) {
	_, verdict, ok := strings.Cut(reply, ": ")
	if !ok {
		return Result{}, fmt.Errorf("clamd's answer %q is not a result", clip(reply))
	}
	if verdict == "OK" {
		return Result{}, nil
	}
	if sig, ok := strings.CutSuffix(verdict, " FOUND"); ok && sig != "" {
		if strings.HasPrefix(sig, "Heuristics.Limits.Exceeded") {
			return Result{Skipped: "the engine's limits: " + sig}, nil
		}
		return Result{Signature: strings.TrimSuffix(sig, ".UNOFFICIAL")}, nil
	}
	if why, ok := strings.CutSuffix(verdict, " ERROR"); ok {
		return Result{Skipped: "the engine's error: " + why}, nil
	}
	return Result{}, fmt.Errorf("clamd's answer %q is not a result", clip(reply))
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
