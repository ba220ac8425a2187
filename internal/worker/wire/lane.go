package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Bounds of the protocol. A message of a lane is a packet of at most MaxFrame bytes. What
// is larger is put into the lane's part of the window, piece by piece.
const (
	Protocol   = 2        // version; the two ends can differ if the program was replaced under a running service
	MaxFrame   = 16 << 10 // bytes
	headSize   = 5        // one byte for the kind or status, four for the number of bytes in the window
	WindowSize = 1 << 20  // bytes of one lane's part of the window
	MaxLanes   = 65       // one for each image in work, and one for the scan itself
)

// Frame is one message: a question of the worker or an answer of the broker.
type Frame struct {
	Code byte   // kind of a question (AskJob and so on) or status of an answer (StatusOK and so on)
	N    int    // number of bytes of the message that are in the window
	Args []byte // valid until the next Frame is received into the same buffer
}

// ParseFrame parses a packet. The Frame's Args are part of p, not a copy.
func ParseFrame(p []byte) (Frame, error) {
	if len(p) < headSize {
		return Frame{}, fmt.Errorf("a message of %d bytes: the shortest has %d", len(p), headSize)
	}
	if len(p) > MaxFrame {
		return Frame{}, fmt.Errorf("a message of more than %d bytes", MaxFrame)
	}
	n := binary.LittleEndian.Uint32(p[1:])
	if n > WindowSize {
		return Frame{}, fmt.Errorf("a message with %d bytes in the window: it has %d", n, WindowSize)
	}
	return Frame{p[0], int(n), p[headSize:]}, nil
}

// AppendFrame appends a packet to b.
func AppendFrame(b []byte, f Frame) []byte {
	b = append(b, f.Code)
	b = binary.LittleEndian.AppendUint32(b, uint32(f.N))
	return append(b, f.Args...)
}

// Lane carries one question and its answer at a time. Each end is used by one goroutine at
// a time. Packets keep their bounds, so nothing has to be resynchronised.
type Lane struct {
	FD     int
	Window []byte // WindowSize bytes that both ends share
	in     [MaxFrame + 1]byte
	out    []byte
}

// NewLane makes a lane of a descriptor and its part of the window. The lane owns neither.
func NewLane(fd int, window []byte) *Lane {
	return &Lane{FD: fd, Window: window, out: make([]byte, 0, MaxFrame)}
}

// Send sends a message. It fails if the message is out of bounds or the other end is gone.
func (l *Lane) Send(f Frame) error {
	if headSize+len(f.Args) > MaxFrame || f.N > len(l.Window) {
		return fmt.Errorf("a message of %d bytes, and %d in the window: too large", len(f.Args), f.N)
	}
	l.out = AppendFrame(l.out[:0], f)
	return l.flush()
}

// flush sends the packet in l.out.
func (l *Lane) flush() error {
	for {
		_, err := unix.Write(l.FD, l.out)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Receive waits for the next message. The error is io.EOF if the other end is gone.
func (l *Lane) Receive() (Frame, error) {
	for {
		n, err := unix.Read(l.FD, l.in[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECONNRESET), err == nil && n == 0:
			return Frame{}, io.EOF
		case err != nil:
			return Frame{}, err
		}
		return ParseFrame(l.in[:n])
	}
}

// Call sends a question with n bytes in the window, and waits for the answer.
func (l *Lane) Call(kind byte, n int, args []byte) (Frame, error) {
	if headSize+len(args) > MaxFrame {
		return Frame{}, fmt.Errorf("a question of %d bytes: too large", len(args))
	}
	return l.Exchange(AppendFrame(l.out[:0], Frame{kind, n, args}))
}

// Begin returns the beginning of a question without bytes in the window. The caller appends
// the arguments and passes the packet to Exchange.
func (l *Lane) Begin(kind byte) []byte { return AppendFrame(l.out[:0], Frame{Code: kind}) }

// Exchange sends a packet that Begin began, and waits for the answer.
func (l *Lane) Exchange(packet []byte) (Frame, error) {
	l.out = packet
	if err := l.flush(); err != nil {
		return Frame{}, fmt.Errorf("ask the broker: %w", err)
	}
	f, err := l.Receive()
	if err != nil {
		return Frame{}, fmt.Errorf("hear the broker: %w", err)
	}
	return f, nil
}
