// Package symsrv fetches the PDB of a kernel build from the places that debuggers use:
// directories and symbol servers, as a symbol path names them.
//
// Nothing from there is trusted. A download is bounded in size and time, continues where an
// earlier attempt ended, and is decompressed if it is a cabinet. It is used only if it
// contains the requested identity. Servers are not asked if the host is air-gapped
// (AirGapped). The package imports winstruct and its readers, and no other package of the
// project.
package symsrv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"vmav.dev/vmav/internal/winstruct"
)

// Environment variables and the file that say which places may be asked.
const (
	PathVariable   = "_NT_SYMBOL_PATH"
	AirGapVariable = "VMAV_AIR_GAPPED"
	AirGapFile     = "/etc/vmav/air-gapped"
)

// Test for these with errors.Is.
var (
	ErrNotFound  = errors.New("no symbol file for this build")
	ErrAirGapped = errors.New("this host is air-gapped: no server is asked")
	ErrIdentity  = errors.New("not the symbol file that was asked for")
)

// Defaults of Options.
const (
	DefaultMaxSize = 512 << 20 // bytes; the PDB of a kernel has some 15 MiB
	DefaultStall   = 30 * time.Second
	DefaultTotal   = 10 * time.Minute
)

// Options configure a Client: the places where it looks, and its limits. The zero value
// takes the symbol path from the host's environment.
type Options struct {
	Path      string        // symbol path; "" for that of the environment, then Microsoft's server
	CacheDir  string        // own store; "" for vmav/symbols in the user's cache directory
	AirGapped bool          // ask no server
	MaxSize   int64         // bytes of one file, compressed or not
	Stall     time.Duration // without a byte, after which a transfer is given up
	Total     time.Duration // for one build, all places and attempts together
	Progress  func(text string)
	transport http.RoundTripper // of a test
	wait      func(context.Context, time.Duration) error
}

// Client fetches symbol files. It is safe for concurrent use.
type Client struct {
	opt    Options
	places []place
	own    string
	http   *http.Client
}

// AirGapped reports whether this host's operator forbids asking servers: by
// $VMAV_AIR_GAPPED, if it is neither "" nor "0", or by the file /etc/vmav/air-gapped.
func AirGapped() bool {
	if v := os.Getenv(AirGapVariable); v != "" {
		return v != "0"
	}
	_, err := os.Stat(AirGapFile)
	return err == nil
}

// New returns a Client. It parses the symbol path, and contacts no place yet.
func New(opt Options) (*Client, error) {
	if opt.MaxSize == 0 {
		opt.MaxSize = DefaultMaxSize
	}
	if opt.Stall == 0 {
		opt.Stall = DefaultStall
	}
	if opt.Total == 0 {
		opt.Total = DefaultTotal
	}
	if opt.Progress == nil {
		opt.Progress = func(string) {}
	}
	if opt.wait == nil {
		opt.wait = wait
	}
	own := opt.CacheDir
	if own == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a place for symbol files: %w", err)
		}
		own = filepath.Join(dir, "vmav", "symbols")
	}
	path := opt.Path
	if path == "" {
		path = os.Getenv(PathVariable)
	}
	if path == "" {
		path = "srv*" + own + "*" + Microsoft
	}
	places, err := parsePath(path, own)
	if err != nil {
		return nil, err
	}
	c := &Client{opt: opt, places: places, own: own}
	c.http = &http.Client{Transport: opt.transport, CheckRedirect: checkRedirect}
	if opt.transport == nil {
		c.http.Transport = &http.Transport{Proxy: http.ProxyFromEnvironment, DisableCompression: true, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: opt.Stall, ResponseHeaderTimeout: opt.Stall, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10}
	}
	return c, nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Profile fetches the symbol file of a build and makes a profile of it. The error names
// every place that was asked and its answer.
func (c *Client) Profile(ctx context.Context, id winstruct.Identity) (*winstruct.Profile, error) {
	if err := id.Check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.opt.Total, fmt.Errorf("given up after %v", c.opt.Total))
	defer cancel()
	var tried []error
	for _, p := range c.places {
		for i, s := range p.stores {
			profile, path, err := c.from(ctx, s, id)
			if err == nil {
				c.keep(p.stores[:i], id, path)
				profile.Sources = []winstruct.Source{{Of: "all", From: "PDB " + id.PDB + " from " + s.String(), Verified: winstruct.VerifiedIdentity}}
				return profile, nil
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("fetch %s from %s: %w", id, s, context.Cause(ctx))
			}
			tried = append(tried, fmt.Errorf("%s: %w", s, err))
		}
	}
	return nil, &NotFoundError{Identity: id, Tried: tried}
}

// NotFoundError reports a build whose symbol file no place has.
type NotFoundError struct {
	Identity winstruct.Identity
	Tried    []error // one for each place
}

// Error implements error.
func (e *NotFoundError) Error() string {
	lines := make([]string, len(e.Tried))
	for i, err := range e.Tried {
		lines[i] = err.Error()
	}
	return fmt.Sprintf("no symbol file for %s: %s", e.Identity, strings.Join(lines, "; "))
}

// Unwrap returns the cause, for errors.Is and errors.As.
func (e *NotFoundError) Unwrap() []error { return append([]error{ErrNotFound}, e.Tried...) }

// names returns the names that a file can have in a store: uncompressed, and compressed.
func names(id winstruct.Identity) []string {
	return []string{id.PDB, id.PDB[:len(id.PDB)-1] + "_"}
}

// from looks for the file in one store.
func (c *Client) from(ctx context.Context, s store, id winstruct.Identity) (*winstruct.Profile, string, error) {
	if s.url != nil {
		return c.fromServer(ctx, s.url, id)
	}
	var failed error
	for _, name := range names(id) {
		for _, path := range []string{filepath.Join(s.dir, id.PDB, id.Key(), name), filepath.Join(s.dir, id.PDB[:min(2, len(id.PDB))], id.PDB, id.Key(), name),
			filepath.Join(s.dir, name), filepath.Join(s.dir, "symbols", "exe", name)} {
			if _, err := os.Stat(path); err != nil {
				continue
			}
			p, err := c.open(path, id)
			if err == nil {
				return p, path, nil
			}
			failed = fmt.Errorf("%s: %w", path, err)
		}
	}
	if failed == nil {
		failed = errors.New("not there")
	}
	return nil, "", failed
}

// open makes a profile of a file that must be the PDB of id, compressed or not.
func (c *Client) open(path string, id winstruct.Identity) (p *winstruct.Profile, err error) {
	err = winstruct.ReadPDB(path, c.opt.MaxSize, func(r io.ReaderAt, size int64, _ string) error {
		p, err = verify(r, size, id)
		return err
	})
	return p, err
}

// verify makes a profile of a PDB whose identity must be id.
func verify(r io.ReaderAt, size int64, id winstruct.Identity) (*winstruct.Profile, error) {
	got, err := winstruct.PDBIdentity(r, size, id.PDB)
	if err != nil {
		return nil, err
	}
	if got != id {
		return nil, fmt.Errorf("%w: it is %s", ErrIdentity, got)
	}
	return winstruct.ImportPDB(r, size, id.PDB)
}

// keep copies a file into the stores before the one in which it was found. A cache that
// cannot be written to is skipped.
func (c *Client) keep(caches []store, id winstruct.Identity, path string) {
	for _, s := range caches {
		if s.url != nil {
			continue
		}
		to := filepath.Join(s.dir, id.PDB, id.Key(), filepath.Base(path))
		if to == path {
			continue
		}
		if err := copyFile(to, path); err != nil {
			c.opt.Progress(fmt.Sprintf("cache %s: %v", s.dir, err))
		}
	}
}

func copyFile(to, from string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := renameio.NewPendingFile(to, renameio.WithTempDir(filepath.Dir(to)), renameio.WithStaticPermissions(0o644))
	if err != nil {
		return err
	}
	defer func() { _ = dst.Cleanup() }()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	return dst.CloseAtomicallyReplace()
}
