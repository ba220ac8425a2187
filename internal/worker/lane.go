package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Bounds of the protocol. A message of a lane is a packet of at most maxFrame bytes;
// what is larger lies in the lane's part of the window, and goes piece by piece.
const (
	protocol   = 1        // version: both ends are one program, which a running service may have outlived
	maxFrame   = 16 << 10 // bytes
	headSize   = 5        // kind or status, then the bytes in the window
	windowSize = 1 << 20  // bytes of one lane's part of the window
	maxLanes   = 65       // one for each job, and one for what the sweep does itself
)

// frame is one message: a question of the worker's or an answer of the broker's.
type frame struct {
	code byte   // kind of a question, status of an answer
	n    int    // bytes of the message that are in the window
	args []byte // valid until the next frame is received into the same buffer
}

// parseFrame reads a packet. Nothing of it is copied.
func parseFrame(p []byte) (frame, error) {
	if len(p) < headSize {
		return frame{}, fmt.Errorf("a message of %d bytes: the shortest has %d", len(p), headSize)
	}
	if len(p) > maxFrame {
		return frame{}, fmt.Errorf("a message of more than %d bytes", maxFrame)
	}
	n := binary.LittleEndian.Uint32(p[1:])
	if n > windowSize {
		return frame{}, fmt.Errorf("a message with %d bytes in the window: it has %d", n, windowSize)
	}
	return frame{p[0], int(n), p[headSize:]}, nil
}

func appendFrame(b []byte, f frame) []byte {
	b = append(b, f.code)
	b = binary.LittleEndian.AppendUint32(b, uint32(f.n))
	return append(b, f.args...)
}

// lane carries one question and its answer at a time. Each end has one goroutine at a
// time on it. Packets keep their bounds, so that there is nothing to resynchronise.
type lane struct {
	fd     int
	window []byte // windowSize bytes, shared
	in     [maxFrame + 1]byte
	out    []byte
}

func newLane(fd int, window []byte) *lane {
	return &lane{fd: fd, window: window, out: make([]byte, 0, maxFrame)}
}

func (l *lane) send(f frame) error {
	if headSize+len(f.args) > maxFrame || f.n > len(l.window) {
		return fmt.Errorf("a message of %d bytes, and %d in the window: too large", len(f.args), f.n)
	}
	l.out = appendFrame(l.out[:0], f)
	return l.flush()
}

// flush sends the packet in out.
func (l *lane) flush() error {
	for {
		_, err := unix.Write(l.fd, l.out)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive waits for the next message. The error is io.EOF where the other end is gone.
func (l *lane) receive() (frame, error) {
	for {
		n, err := unix.Read(l.fd, l.in[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECONNRESET), err == nil && n == 0:
			return frame{}, io.EOF
		case err != nil:
			return frame{}, err
		}
		return parseFrame(l.in[:n])
	}
}

// call asks and waits for the answer.
func (l *lane) call(kind byte, n int, args []byte) (frame, error) {
	if headSize+len(args) > maxFrame {
		return frame{}, fmt.Errorf("a question of %d bytes: too large", len(args))
	}
	l.out = appendFrame(l.out[:0], frame{kind, n, args})
	return l.exchange()
}

// exchange asks what is in out and waits for the answer.
func (l *lane) exchange() (frame, error) {
	if err := l.flush(); err != nil {
		return frame{}, fmt.Errorf("ask the broker: %w", err)
	}
	f, err := l.receive()
	if err != nil {
		return frame{}, fmt.Errorf("hear the broker: %w", err)
	}
	return f, nil
}
