package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/scan"
)

// progress is a line on the terminal that is written again and again. It writes nothing if
// stderr is not a terminal.
type progress struct {
	w io.Writer // nil for none

	mu   sync.Mutex
	last time.Time
	open bool
}

func newProgress(w io.Writer) *progress {
	if !isTerminal(w) {
		return &progress{}
	}
	return &progress{w: w}
}

func (p *progress) line(force bool, format string, args ...any) {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !force && time.Since(p.last) < 100*time.Millisecond {
		return
	}
	p.last, p.open = time.Now(), true
	fmt.Fprintf(p.w, "\r\x1b[K"+format, args...)
}

// Looked implements respond.Observer.
func (p *progress) Looked(introspect.Identity, scan.ImageKey, bool) {}

// Progress implements respond.Observer.
func (p *progress) Progress(s scan.Progress) {
	p.line(s.Done == s.Total, "%s: %d of %d images, %d findings", escape.Text(s.Domain), s.Done, s.Total, s.Findings)
}

// note tells what takes long.
func (p *progress) note(s string) { p.line(true, "%s …", s) }

// clear removes the line.
func (p *progress) clear() {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.open = false
	}
}
