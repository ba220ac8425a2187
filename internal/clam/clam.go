// Package clam scans rebuilt files with a ClamAV daemon. It speaks clamd's session
// protocol, passes content as sealed memory files, and runs a private clamd if the host has
// none.
//
// Content that the daemon did not look at completely never counts as clean: if limits or
// errors stopped it, or the file is above its size limit, the result is Skipped.
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

	"vmav.dev/vmav/internal/clam/answer"
)

// Errors that a caller may act on. Test for them with errors.Is.
var (
	// ErrEngineGone reports that clamd ended while it was in use.
	ErrEngineGone = answer.ErrEngineGone
	// ErrNoEngine reports that no clamd answers and none could be started.
	ErrNoEngine = answer.ErrNoEngine
)

// DefaultSocket is where Debian's clamd listens.
const DefaultSocket = "/run/clamav/clamd.ctl"

// Options choose the engine.
type Options struct {
	// Socket is clamd's address: a path, or host:port. "" means DefaultSocket.
	Socket string
	// Databases are signature files, or directories of them, for a private engine. If there
	// are any, the host's clamd is not used, because it has its own databases.
	Databases []string
	// TempDir is the directory for the private engine's files. If it is "", that is the
	// user's runtime directory, or else the system's temporary directory.
	TempDir string
	// Progress is called with a description of each step that takes long. It may be nil.
	Progress func(string)
}

// Info describes the engine and the age of its signatures.
type Info struct {
	Version   string    `json:"version"`              // "ClamAV 1.4.6"
	Database  string    `json:"database,omitempty"`   // version of the daily database
	BuildTime time.Time `json:"build_time,omitempty"` // of the database; zero where unknown
	Private   bool      `json:"private"`
	Socket    string    `json:"socket"`
}

// Age returns the age of the database, and whether it is known.
func (i Info) Age(now time.Time) (time.Duration, bool) {
	return now.Sub(i.BuildTime), !i.BuildTime.IsZero()
}

// Result is the engine's answer for one file.
type Result = answer.Result

// Engine is a ClamAV daemon that is ready to scan. It is safe for concurrent use. The
// caller closes it.
type Engine struct {
	addr    string
	maxFile uint64 // bytes the daemon scans of a file
	info    Info
	daemon  *daemon // nil unless private

	mu      sync.Mutex
	session *session
	closed  bool
}

// Open connects to the host's clamd. If none answers, or databases are given, it starts a
// private one and waits until it is ready. The error wraps ErrNoEngine if there can be
// none.
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

// Info returns what is known of the engine.
func (e *Engine) Info() Info { return e.info }

// Check asks the daemon for its version again, since it may have loaded other signatures.
// The error wraps ErrEngineGone.
func (e *Engine) Check(ctx context.Context) (Info, error) {
	now, err := version(ctx, e.addr)
	if err != nil {
		return Info{}, fmt.Errorf("%w: %w", ErrEngineGone, err)
	}
	now.Private, now.Socket = e.info.Private, e.info.Socket
	return now, nil
}

// Close ends the session, and the daemon if it is private.
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

// Scan has the engine scan data. name describes it in errors. An error means that there is
// no result; it wraps ErrEngineGone if clamd has ended.
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

// because adds the private daemon's last message to an error of its session.
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

// parseResult parses clamd's answer for one descriptor: "fd[10]: OK", "fd[10]:
// Eicar-Signature FOUND", "fd[10]: … ERROR". A finding named Heuristics.Limits.… means that
// clamd did not look at everything (AlertExceedsMax).
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
