package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"vmav.dev/vmav/internal/config"
)

// Bounds of the tries to deliver one event.
const (
	webhookTimeout = 10 * time.Second // of one try
	webhookTries   = 6
	webhookBackoff = 500 * time.Millisecond // after the first try, then twice as long after each
	webhookMaxWait = 30 * time.Second
	maxAnswer      = 64 << 10 // bytes of an answer that are read
	minSecret      = 16       // bytes
	maxSecret      = 4096
)

// Headers of what is sent.
const (
	// SignatureHeader is "t=TIME,v1=MAC". TIME is the time of the try in seconds since
	// 1970. MAC is the HMAC-SHA256 of TIME, a dot and the body under the secret, in
	// hexadecimal.
	SignatureHeader = "X-Vmav-Signature"
	// EventHeader is the event's id, which is the same in every try.
	EventHeader = "X-Vmav-Event"
)

// webhook is an HTTP server that gets events as JSON, by POST. While the server does not
// answer, or says that it may work later, there is another try.
type webhook struct {
	url    string
	secret []byte // nil for none
	client *http.Client
	wait   func(ctx context.Context, d time.Duration) error
}

func openWebhook(c config.Webhook) (*webhook, error) {
	w := &webhook{url: c.URL, wait: sleep, client: &http.Client{
		Timeout:       webhookTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if c.SecretFile != "" {
		var err error
		if w.secret, err = readSecret(c.SecretFile); err != nil {
			return nil, fmt.Errorf("webhook: %w", err)
		}
	}
	return w, nil
}

// readSecret reads the key of signatures. It refuses a file that everybody can read or
// write.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o006 != 0 {
		return nil, fmt.Errorf("secret %s: everybody may read it: chmod o-rw", path)
	}
	secret, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", path, err)
	}
	if secret = bytes.TrimRight(secret, "\r\n"); len(secret) < minSecret || len(secret) > maxSecret {
		return nil, fmt.Errorf("secret %s: it has %d bytes: %d to %d are possible", path, len(secret), minSecret, maxSecret)
	}
	return secret, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (*webhook) name() string { return "webhook" }
func (*webhook) log() bool    { return false }
func (w *webhook) close() error {
	w.client.CloseIdleConnections()
	return nil
}

func (w *webhook) send(ctx context.Context, e *Event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	pause := webhookBackoff
	for try := 1; ; try++ {
		again, after, err := w.try(ctx, e.ID, body)
		if err == nil {
			return nil
		}
		if !again || try == webhookTries {
			return fmt.Errorf("try %d: %w", try, err)
		}
		// Half of the pause is random, so that many hosts do not come back at the same
		// moment.
		d := max(pause/2+rand.N(pause/2), min(after, webhookMaxWait))
		if werr := w.wait(ctx, d); werr != nil {
			return fmt.Errorf("try %d: %w", try, err)
		}
		pause = min(2*pause, webhookMaxWait)
	}
}

// try sends a body once. again tells whether another try may work. after is how long the
// server wants to wait for it, 0 if it does not say.
func (w *webhook) try(ctx context.Context, id string, body []byte) (again bool, after time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return false, 0, withoutURL(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "vmav")
	req.Header.Set(EventHeader, id)
	if w.secret != nil {
		req.Header.Set(SignatureHeader, Sign(w.secret, time.Now(), body))
	}
	res, err := w.client.Do(req)
	if err != nil {
		return ctx.Err() == nil, 0, withoutURL(err)
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, maxAnswer) // the connection can be used again only then
	switch code := res.StatusCode; {
	case code >= 200 && code < 300:
		return false, 0, nil
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		if s, perr := strconv.ParseUint(res.Header.Get("Retry-After"), 10, 16); perr == nil {
			after = time.Duration(s) * time.Second
		}
		return true, after, fmt.Errorf("the server answers %d", code)
	default:
		return false, 0, fmt.Errorf("the server answers %d", code)
	}
}

// withoutURL removes the address from an error of net/http, because its path may be
// secret.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// Sign returns the value of SignatureHeader for a body that is sent at a time.
func Sign(secret []byte, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(t + "."))
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
