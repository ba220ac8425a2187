package symsrv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vmav.dev/vmav/internal/winstruct"
)

const (
	attempts     = 5 // of one file
	maxRedirects = 5
	maxRetry     = 10 * time.Second // that a server can ask to wait
)

// errAbsent reports a server that has no such file.
var errAbsent = errors.New("not there")

// checkRedirect bounds the number of redirections and allows none from https to http.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("redirected more than %d times", maxRedirects)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirected from https to %s", req.URL.Redacted())
	}
	return nil
}

// fromServer downloads the file into the first store and verifies it. If an earlier attempt
// got a part of the file, the download continues behind that. The path is that of the
// verified file.
func (c *Client) fromServer(ctx context.Context, base *url.URL, id winstruct.Identity) (*winstruct.Profile, string, error) {
	if c.opt.AirGapped {
		return nil, "", ErrAirGapped
	}
	dir := filepath.Join(c.own, id.PDB, id.Key())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", err
	}
	unlock, err := lock(ctx, filepath.Join(dir, ".lock"))
	if err != nil {
		return nil, "", err
	}
	defer unlock()
	failed := errAbsent
	for _, name := range names(id) {
		path := filepath.Join(dir, name)
		err := c.download(ctx, base.JoinPath(id.PDB, id.Key(), name), path+".part")
		if errors.Is(err, errAbsent) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		p, err := c.open(path+".part", id)
		if err != nil {
			// A file that is not the requested one is useless, also as the start of another
			// download.
			failed = err
			forget(path + ".part")
			continue
		}
		forgetTag(path + ".part")
		return p, path, os.Rename(path+".part", path)
	}
	return nil, "", failed
}

// lock prevents other downloads of the same file, including those of other processes.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			f.Close()
			return nil, fmt.Errorf("another fetch of this file is under way: %w", err)
		}
	}
}

func forget(part string) {
	os.Remove(part)
	forgetTag(part)
}

func forgetTag(part string) { os.Remove(part + ".tag") }

// download downloads a URL into a file. If the connection breaks it tries again several
// times, each time from where the last attempt ended.
func (c *Client) download(ctx context.Context, u *url.URL, part string) error {
	var err error
	for n := range attempts {
		if n > 0 {
			pause := time.Duration(250<<(n-1)) * time.Millisecond
			var later *retryError
			if errors.As(err, &later) && later.after > 0 {
				pause = min(later.after, maxRetry)
			}
			c.opt.Progress(fmt.Sprintf("%s: %v; again in %v", u.Redacted(), err, pause))
			if werr := c.opt.wait(ctx, pause); werr != nil {
				return werr
			}
		}
		err = c.attempt(ctx, u, part)
		var later *retryError
		if err == nil || ctx.Err() != nil || !errors.As(err, &later) {
			return err
		}
	}
	return fmt.Errorf("given up after %d attempts: %w", attempts, err)
}

// retryError is an error that may not occur again in another attempt.
type retryError struct {
	err   error
	after time.Duration // that the server asks for; 0 for nothing said
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// attempt makes one request, for the missing part of the file.
func (c *Client) attempt(ctx context.Context, u *url.URL, part string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(c.opt.Stall, func() { cancel(fmt.Errorf("no data for %v", c.opt.Stall)) })
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "vmav")
	have := int64(0)
	tag, err := os.ReadFile(part + ".tag")
	if st, serr := os.Stat(part); err == nil && serr == nil && st.Size() > 0 && len(tag) > 0 {
		have = st.Size()
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		req.Header.Set("If-Range", string(tag))
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.broken(ctx, err)
	}
	defer res.Body.Close()
	var total int64 // of the whole file; -1 where the server does not say
	switch res.StatusCode {
	case http.StatusOK:
		have, total = 0, res.ContentLength
	case http.StatusPartialContent:
		start, all, err := contentRange(res.Header.Get("Content-Range"))
		if err != nil || start != have {
			forget(part)
			return &retryError{err: fmt.Errorf("the server answers with %q where bytes from %d were asked for", res.Header.Get("Content-Range"), have)}
		}
		total = all
	case http.StatusRequestedRangeNotSatisfiable:
		forget(part)
		return &retryError{err: errors.New("what was fetched before is not part of the server's file")}
	case http.StatusNotFound, http.StatusGone:
		return errAbsent
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusInternalServerError:
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
		return &retryError{fmt.Errorf("the server answers %s", res.Status), time.Duration(max(0, min(seconds, 3600))) * time.Second}
	default:
		return fmt.Errorf("the server answers %s", res.Status)
	}
	if total > c.opt.MaxSize {
		return fmt.Errorf("the server's file has %d bytes, more than the %d that are allowed", total, c.opt.MaxSize)
	}
	return c.receive(ctx, res, part, have, total, stall)
}

// receive appends the answer to the file from have on.
func (c *Client) receive(ctx context.Context, res *http.Response, part string, have, total int64, stall *time.Timer) error {
	flags := os.O_WRONLY | os.O_CREATE
	if have == 0 {
		flags |= os.O_TRUNC
		forgetTag(part)
	}
	f, err := os.OpenFile(part, flags, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return err
	}
	if tag := strongTag(res.Header); have == 0 && tag != "" {
		if err := os.WriteFile(part+".tag", []byte(tag), 0o644); err != nil {
			return err
		}
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := res.Body.Read(buf)
		if n > 0 {
			stall.Reset(c.opt.Stall)
			if have += int64(n); have > c.opt.MaxSize {
				f.Close()
				forget(part)
				return fmt.Errorf("the server sends more than the %d bytes that are allowed", c.opt.MaxSize)
			}
			if _, err := f.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			return c.broken(ctx, err)
		}
		if total >= 0 && have != total {
			return &retryError{err: fmt.Errorf("%d of %d bytes came", have, total)}
		}
		return f.Close()
	}
}

// broken returns the error of a connection. Another attempt may succeed, unless the caller
// has ended the download.
func (c *Client) broken(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = cause
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	if errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &cert) {
		return err // it will be the same again
	}
	return &retryError{err: err}
}

// strongTag returns the entity tag of this exact content, or "" if it is weak or missing.
func strongTag(h http.Header) string {
	if tag := h.Get("ETag"); tag != "" && !strings.HasPrefix(tag, "W/") {
		return tag
	}
	return h.Get("Last-Modified")
}

// contentRange parses "bytes START-END/TOTAL". A total that is not given is -1.
func contentRange(text string) (start, total int64, err error) {
	rest, ok := strings.CutPrefix(text, "bytes ")
	span, all, ok2 := strings.Cut(rest, "/")
	first, _, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, errors.New("no range")
	}
	if start, err = strconv.ParseInt(first, 10, 64); err != nil {
		return 0, 0, err
	}
	if all == "*" {
		return start, -1, nil
	}
	total, err = strconv.ParseInt(all, 10, 64)
	return start, total, err
}
