package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vmav.dev/vmav/internal/config"
)

// server is a real HTTP server on loopback that answers as it is told, one answer
// after the other, the last one for ever.
type server struct {
	*httptest.Server
	mu      sync.Mutex
	answers []http.HandlerFunc
	got     []request
}

// requests are those that were answered.
func (s *server) requests() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]request(nil), s.got...)
}

type request struct {
	header http.Header
	body   []byte
}

func answer(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

// hangUp breaks the connection without an answer.
func hangUp(w http.ResponseWriter, _ *http.Request) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		c.Close()
	}
}

func serve(t *testing.T, answers ...http.HandlerFunc) *server {
	s := &server{answers: answers}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.got = append(s.got, request{r.Header.Clone(), body})
		next := s.answers[0]
		if len(s.answers) > 1 {
			s.answers = s.answers[1:]
		}
		s.mu.Unlock()
		next(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// hook is the webhook of a server, whose pauses are noted and not slept.
func (s *server) hook(t *testing.T, secret string) (*webhook, *[]time.Duration) {
	t.Helper()
	w, err := openWebhook(config.Webhook{URL: s.URL + "/secret/path"})
	if err != nil {
		t.Fatal(err)
	}
	if secret != "" {
		w.secret = []byte(secret)
	}
	var pauses []time.Duration
	w.wait = func(ctx context.Context, d time.Duration) error { pauses = append(pauses, d); return ctx.Err() }
	return w, &pauses
}

func event() *Event {
	f := found("r", true)
	return &Event{ID: newID(), Type: TypeFinding, Domain: "win10", Finding: &f}
}

func TestWebhookDeliversAndSigns(t *testing.T) {
	s := serve(t, answer(204))
	w, pauses := s.hook(t, "0123456789abcdef")
	e := event()
	if err := w.send(context.Background(), e); err != nil || len(*pauses) > 0 {
		t.Fatal(err, *pauses)
	}
	r := s.requests()[0]
	var back Event
	if err := json.Unmarshal(r.body, &back); err != nil || back.ID != e.ID || back.Finding.PID != 812 {
		t.Errorf("%v: %s", err, r.body)
	}
	sig := r.header.Get(SignatureHeader)
	at, _, _ := strings.Cut(strings.TrimPrefix(sig, "t="), ",")
	sec, err := strconv.ParseInt(at, 10, 64)
	if err != nil || sig != Sign([]byte("0123456789abcdef"), time.Unix(sec, 0), r.body) || sig == Sign([]byte("another"), time.Unix(sec, 0), r.body) {
		t.Errorf("signature %q: %v", sig, err)
	}
	if r.header.Get(EventHeader) != e.ID || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("%v", r.header)
	}
}

// The value was computed with openssl: printf '5.{}' | openssl dgst -sha256 -hmac key.
func TestSignature(t *testing.T) {
	if got, want := Sign([]byte("key"), time.Unix(5, 0), []byte("{}")), "t=5,v1=9be615aec64f0d044b5ad6854ab1d893ec88617fb728d2149dcd3a3428e8c45d"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestWebhookTriesAgain(t *testing.T) {
	s := serve(t, answer(500), hangUp, answer(429, "Retry-After", "7"), answer(503, "Retry-After", "3600"), answer(200))
	w, pauses := s.hook(t, "")
	if err := w.send(context.Background(), event()); err != nil {
		t.Fatal(err)
	}
	got := s.requests()
	if len(got) != 5 {
		t.Fatalf("%d requests", len(got))
	}
	for _, r := range got {
		if r.header.Get(EventHeader) != got[0].header.Get(EventHeader) || string(r.body) != string(got[0].body) {
			t.Error("the tries differ")
		}
	}
	p := *pauses
	if len(p) != 4 || p[0] < webhookBackoff/2 || p[0] > webhookBackoff || p[1] < webhookBackoff || p[1] > 2*webhookBackoff || p[2] != 7*time.Second ||
		p[3] != webhookMaxWait {
		t.Errorf("pauses %v", p)
	}
}

func TestWebhookGivesUp(t *testing.T) {
	for _, tt := range []struct {
		answer http.HandlerFunc
		tries  int
		want   string
	}{
		{answer(500), webhookTries, "the server answers 500"},
		{hangUp, webhookTries, "EOF"},
		{answer(404), 1, "the server answers 404"},
		{answer(302, "Location", "/elsewhere"), 1, "the server answers 302"}, // what was found is for one place only
	} {
		s := serve(t, tt.answer)
		w, _ := s.hook(t, "")
		err := w.send(context.Background(), event())
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), fmt.Sprintf("try %d", tt.tries)) ||
			strings.Contains(err.Error(), "secret") {
			t.Errorf("%v, want %s at try %d", err, tt.want, tt.tries)
		}
		if n := len(s.requests()); n != tt.tries {
			t.Errorf("%s: %d requests, want %d", tt.want, n, tt.tries)
		}
	}
}

// A server that does not answer costs its time and no more; nor does one that answers
// without end.
func TestSlowServers(t *testing.T) {
	free := make(chan struct{})
	t.Cleanup(func() { close(free) })
	slow := func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-free:
		case <-r.Context().Done():
		}
	}
	endless := func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}
	s := serve(t, slow, endless)
	w, _ := s.hook(t, "")
	w.client.Timeout = 200 * time.Millisecond
	if err := w.send(context.Background(), event()); err != nil {
		t.Errorf("after one try too slow: %v", err)
	}
	if n := len(s.requests()); n != 2 {
		t.Errorf("%d requests", n)
	}
	// In the middle of a try, the end.
	s = serve(t, slow)
	w, _ = s.hook(t, "")
	n := notifier(w)
	f := found("r", true)
	n.Finding("win10", "", &f, false)
	for len(s.requests()) == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := n.Close(ctx); err == nil || !strings.Contains(err.Error(), "webhook: 1 events were not delivered") {
		t.Errorf("%v", err)
	}
}
