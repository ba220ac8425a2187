package clam

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// session is one IDSESSION with clamd. Several scans can be in progress; their answers come
// in any order, each with the number of its command.
type session struct {
	conn *net.UnixConn

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan string
	err     error         // why the session ended
	done    chan struct{} // closed with err set

	slots chan struct{} // bounds the scans under way: clamd drops a client that floods it
}

const (
	maxOutstanding = 16
	maxReply       = 64 << 10 // bytes of one answer
)

// dial connects to clamd at a path or host:port.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	network := "unix"
	if !strings.HasPrefix(addr, "/") && strings.Contains(addr, ":") {
		network = "tcp"
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	return d.DialContext(ctx, network, addr)
}

func newSession(ctx context.Context, addr string) (*session, error) {
	conn, err := dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEngineGone, err)
	}
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("clamd at %s is behind a network: files can be passed over a unix socket only", addr)
	}
	if _, err := uc.Write([]byte("zIDSESSION\x00")); err != nil {
		uc.Close()
		return nil, fmt.Errorf("%w: %w", ErrEngineGone, err)
	}
	s := &session{conn: uc, next: 1, pending: make(map[uint64]chan string), done: make(chan struct{}), slots: make(chan struct{}, maxOutstanding)}
	go s.read()
	return s, nil
}

// read passes answers to their callers until the connection ends.
func (s *session) read() {
	sc := bufio.NewScanner(s.conn)
	sc.Buffer(make([]byte, 4096), maxReply)
	sc.Split(splitZero)
	for sc.Scan() {
		id, reply, err := parseReply(sc.Text())
		if err != nil {
			s.close(err)
			return
		}
		s.mu.Lock()
		ch := s.pending[id]
		delete(s.pending, id)
		s.mu.Unlock()
		if ch == nil {
			s.close(fmt.Errorf("clamd answers a question %d that was not asked", id))
			return
		}
		ch <- reply
	}
	err := sc.Err()
	if err == nil {
		err = errors.New("it closed the connection")
	}
	s.close(fmt.Errorf("%w: %w", ErrEngineGone, err))
}

// splitZero is a bufio.SplitFunc that splits at zero bytes, which end the answers to z
// commands.
func splitZero(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, fmt.Errorf("its last answer %q is cut off", clip(string(data)))
	}
	return 0, nil, nil
}

// parseReply separates "<id>: <answer>".
func parseReply(line string) (id uint64, reply string, err error) {
	num, reply, ok := strings.Cut(line, ": ")
	if ok {
		id, err = strconv.ParseUint(num, 10, 64)
	}
	if !ok || err != nil {
		return 0, "", fmt.Errorf("clamd's answer %q has no number", clip(line))
	}
	return id, reply, nil
}

// close ends the session with a reason. The first reason is kept.
func (s *session) close(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = why
	close(s.done)
	s.conn.Close()
}

func (s *session) dead() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// scan passes a file and waits for the answer.
func (s *session) scan(ctx context.Context, f *os.File) (string, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return "", ctx.Err()
	case <-s.done:
		return "", s.err
	}
	ch := make(chan string, 1)
	if err := s.send(f, ch); err != nil {
		return "", err
	}
	select {
	case reply := <-ch:
		return reply, nil
	case <-s.done:
		return "", s.err
	case <-ctx.Done():
		// The answer will still come; its channel has room for it.
		return "", ctx.Err()
	}
}

// send writes the command and directly after it the descriptor with one byte. Both are
// under one lock, because clamd assigns the next descriptor to the last FILDES.
func (s *session) send(f *os.File, ch chan string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.pending[s.next] = ch
	s.next++
	_ = s.conn.SetWriteDeadline(time.Now().Add(time.Minute))
	_, err := s.conn.Write([]byte("zFILDES\x00"))
	if err == nil {
		_, _, err = s.conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(f.Fd())), nil)
	}
	if err != nil {
		s.err = fmt.Errorf("%w: %w", ErrEngineGone, err)
		close(s.done)
		s.conn.Close()
		return s.err
	}
	return nil
}

// sealed returns a memory file with data, which nobody can change any more. The caller
// closes it.
func sealed(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("vmav", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("create a memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:vmav")
	_, err = f.Write(data)
	if err == nil {
		_, err = f.Seek(0, 0)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("fill a memory file of %d bytes: %w", len(data), err)
	}
	return f, nil
}

// version asks a daemon for its version: "ClamAV 1.4.6/27400/Mon Nov 3 09:12:01 2025", or
// only the part before the first slash if it has no daily database.
func version(ctx context.Context, addr string) (Info, error) {
	conn, err := dial(ctx, addr)
	if err != nil {
		return Info{}, err
	}
	defer conn.Close()
	line, err := askVersion(ctx, conn)
	if err != nil {
		return Info{}, err
	}
	return parseVersion(line)
}

func askVersion(ctx context.Context, conn net.Conn) (string, error) {
	deadline := time.Now().Add(30 * time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = conn.SetDeadline(deadline)
	if _, err := conn.Write([]byte("zVERSION\x00")); err != nil {
		return "", err
	}
	line, err := bufio.NewReaderSize(conn, 4096).ReadSlice(0)
	if err != nil {
		return "", fmt.Errorf("ask for its version: %w", err)
	}
	return string(line[:len(line)-1]), nil
}

func parseVersion(line string) (Info, error) {
	name, rest, _ := strings.Cut(line, "/")
	if !strings.HasPrefix(name, "ClamAV ") {
		return Info{}, fmt.Errorf("%q is not clamd's version", clip(line))
	}
	info := Info{Version: name}
	db, built, ok := strings.Cut(rest, "/")
	if ok {
		info.Database = db
		if t, err := time.Parse(time.ANSIC, built); err == nil {
			info.BuildTime = t
		}
	}
	return info, nil
}
