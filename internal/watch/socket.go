package watch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// request is what a client sends. The socket carries one JSON object per line: requests to
// the service, and one answer for each.
type request struct {
	Op   string `json:"op"` // opStatus or opHint
	Hint *Hint  `json:"hint,omitempty"`
}

type answer struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"`
}

const (
	opStatus = "status"
	opHint   = "hint"
)

// Hint is what a hook of libvirt reports: something is about to happen, or has happened, to
// a domain.
type Hint struct {
	Domain    string `json:"domain"`
	Operation string `json:"operation"`
	Sub       string `json:"sub_operation,omitempty"`
}

// Bounds of the socket.
const (
	maxLine    = 64 << 10 // bytes of a request
	maxClients = 64
	idle       = 30 * time.Second // how long a client may be silent
	maxName    = 4096             // bytes of a domain's name
)

// Check returns an error if libvirt cannot have given this hint.
func (h *Hint) Check() error {
	for what, text := range map[string]string{"domain": h.Domain, "operation": h.Operation, "sub-operation": h.Sub} {
		switch {
		case len(text) > maxName:
			return fmt.Errorf("hook event: its %s has %d bytes, %d are possible", what, len(text), maxName)
		case !utf8.ValidString(text):
			return fmt.Errorf("hook event: its %s is no text", what)
		}
	}
	if h.Domain == "" || h.Operation == "" {
		return errors.New("hook event: it names no domain or no operation")
	}
	return nil
}

// group is the system group that may use the socket, besides root and the service's own
// user.
const group = "vmav"

// socket is the service's side of the socket.
type socket struct {
	l     *net.UnixListener
	s     *Service
	hints chan Hint
	gids  []uint32 // groups that may use it
	wg    sync.WaitGroup
}

// listen makes the socket. The caller holds the service's lock, so an existing socket
// belongs to a dead service.
func (s *Service) listen() (*socket, error) {
	path := SocketPath(s.opt.Runtime)
	if err := os.MkdirAll(s.opt.Runtime, 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make the socket: %w", err)
	}
	// Nobody can connect before it has its mode.
	temp := filepath.Join(s.opt.Runtime, fmt.Sprintf(".sock-%d", os.Getpid()))
	_ = os.Remove(temp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	k := &socket{l: l, s: s, hints: make(chan Hint, 256)}
	err = os.Chmod(temp, 0o660)
	if g, gerr := user.LookupGroup(group); err == nil && gerr == nil && os.Getuid() == 0 {
		if gid, cerr := strconv.ParseUint(g.Gid, 10, 32); cerr == nil {
			k.gids = append(k.gids, uint32(gid))
			err = os.Chown(temp, -1, int(gid))
		}
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		l.Close()
		_ = os.Remove(temp)
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	k.wg.Add(1)
	go k.accept()
	return k, nil
}

func (k *socket) close() {
	_ = os.Remove(SocketPath(k.s.opt.Runtime))
	k.l.Close()
	k.wg.Wait()
}

func (k *socket) accept() {
	defer k.wg.Done()
	clients := make(chan struct{}, maxClients)
	for {
		c, err := k.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // there are no free descriptors
			continue
		}
		select {
		case clients <- struct{}{}:
		default:
			c.Close()
			continue
		}
		k.wg.Add(1)
		go func() {
			defer k.wg.Done()
			defer func() { <-clients }()
			defer c.Close()
			k.serve(c)
		}()
	}
}

// serve answers one client.
func (k *socket) serve(c *net.UnixConn) {
	if err := k.allowed(c); err != nil {
		k.s.opt.Log.Warn("refused on the socket", "error", err)
		reply(c, answer{Error: err.Error()})
		return
	}
	in := bufio.NewScanner(c)
	in.Buffer(make([]byte, 4096), maxLine)
	for {
		_ = c.SetDeadline(time.Now().Add(idle))
		if !in.Scan() {
			return
		}
		if !reply(c, k.answer(in.Bytes())) {
			return
		}
	}
}

func reply(c *net.UnixConn, a answer) bool {
	text, err := json.Marshal(a)
	if err == nil {
		_, err = c.Write(append(text, '\n'))
	}
	return err == nil
}

func (k *socket) answer(line []byte) answer {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return answer{Error: fmt.Sprintf("request: %v", err)}
	}
	switch {
	case r.Op == opStatus:
		st := k.s.Status()
		return answer{Status: &st}
	case r.Op == opHint && r.Hint != nil:
		if err := r.Hint.Check(); err != nil {
			return answer{Error: err.Error()}
		}
		select {
		case k.hints <- *r.Hint:
		default: // there are too many; libvirt's own events have to do
		}
		return answer{}
	}
	return answer{Error: fmt.Sprintf("request: no operation %.40q", r.Op)}
}

// allowed checks who is at the other end. It must be root, the service's own user, or a
// member of the group.
func (k *socket) allowed(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var groups []uint32
	cerr := raw.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			groups = supplementary(int(cred.Pid))
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return fmt.Errorf("who is it: %w", err)
	}
	ours := func(gid uint32) bool { return slices.Contains(k.gids, gid) }
	if cred.Uid == 0 || cred.Uid == uint32(os.Getuid()) || ours(cred.Gid) || slices.ContainsFunc(groups, ours) {
		return nil
	}
	return fmt.Errorf("user %d is neither root nor in group %s", cred.Uid, group)
}

// supplementary returns the supplementary groups of a process. The process may have ended
// and its id be that of another; but the socket's mode has already kept out everybody who
// is not in the group.
func supplementary(pid int) []uint32 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	return parseGroups(string(text))
}

// Client is a connection to a service. It is for one goroutine.
type Client struct {
	c  *net.UnixConn
	in *bufio.Scanner
}

// ErrNoService reports that no service is running.
var ErrNoService = errors.New("no service runs")

// Dial connects to the service of a runtime directory. The caller closes the Client.
func Dial(ctx context.Context, runtime string) (*Client, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", SocketPath(runtime))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
			err = ErrNoService
		}
		return nil, fmt.Errorf("connect to the service at %s: %w", SocketPath(runtime), err)
	}
	in := bufio.NewScanner(c)
	in.Buffer(make([]byte, 4096), 16<<20)
	return &Client{c.(*net.UnixConn), in}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.c.Close() }

func (c *Client) ask(ctx context.Context, r request) (answer, error) {
	var a answer
	if d, ok := ctx.Deadline(); ok {
		_ = c.c.SetDeadline(d)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return a, err
	}
	if _, err := c.c.Write(append(text, '\n')); err != nil {
		return a, fmt.Errorf("ask the service: %w", err)
	}
	if !c.in.Scan() {
		err := c.in.Err()
		if err == nil {
			err = errors.New("it closed the connection")
		}
		return a, fmt.Errorf("ask the service: %w", err)
	}
	if err := json.Unmarshal(c.in.Bytes(), &a); err != nil {
		return a, fmt.Errorf("the service's answer: %w", err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("the service: %s", a.Error)
	}
	return a, nil
}

// Status asks the service for its state.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	a, err := c.ask(ctx, request{Op: opStatus})
	if err == nil && a.Status == nil {
		err = errors.New("the service: no status in its answer")
	}
	return a.Status, err
}

// Tell passes on an event of a hook. It does not wait for the service to look at it.
func (c *Client) Tell(ctx context.Context, h Hint) error {
	if d, ok := ctx.Deadline(); ok {
		_ = c.c.SetDeadline(d)
	}
	text, err := json.Marshal(request{Op: opHint, Hint: &h})
	if err == nil {
		_, err = c.c.Write(append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("tell the service: %w", err)
	}
	return nil
}
