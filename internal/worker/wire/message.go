package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unicode/utf8"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// Kinds of questions. Each question gets one answer. The comments say: arguments → answer.
const (
	AskJob       = 1  // protocol version, Landlock's version → the next job, once there is one
	AskRanges    = 2  // → guest RAM, 16 bytes a range
	AskRead      = 3  // addresses and sizes → one status for each, data in the window
	AskRegisters = 4  // → JSON
	AskProfile   = 5  // identity as JSON → the profile's file
	AskNear      = 6  // version → list of profiles as JSON
	AskNearOpen  = 7  // index into that list → the profile's file
	AskMore      = 8  // → the next piece of the previous answer
	AskContent   = 9  // a piece of the content of the next AskScan or AskFound → noted
	AskScan      = 10 // total size of the content, name; the last piece of it in the window → what the engine says
	AskFound     = 11 // finding as JSON → noted
	AskProblems  = 12 // unread things as JSON → noted
	AskProgress  = 13 // done, total → noted
	AskDone      = 14 // the rest of the result as JSON, after all other answers → noted
	AskPageIn    = 15 // action as JSON → taken up
	AskCancel    = 16 // cookie → whether it was pending
	AskEvent     = 17 // → the next event as JSON, or nothing if there is none yet
	AskRecall    = 18 // key → whether there is a record, which is in the window
	AskRemember  = 19 // key; a record in the window → noted
	AskClean     = 20 // SHA-256 → whether the engine is known to have found nothing in that content
	AskLooked    = 21 // images that were looked at, LookedSize bytes each, in the window → noted
	LastKind     = AskLooked
)

// Statuses of answers. All except StatusOK come with a text for people.
const (
	StatusOK = iota
	StatusHole
	StatusGone
	StatusClosed
	StatusNoRegisters
	StatusEngineGone
	StatusEngineClosed
	StatusMissing // no profile
	StatusCancelled
	StatusFailed // for a reason that no caller decides on
)

// sentinels are the errors that a caller decides on, by status.
var sentinels = [...]error{
	StatusHole: source.ErrHole, StatusGone: source.ErrGone, StatusClosed: source.ErrClosed,
	StatusNoRegisters: source.ErrNoRegisters, StatusEngineGone: answer.ErrEngineGone,
	StatusEngineClosed: os.ErrClosed, StatusMissing: winstruct.ErrNoProfile, StatusCancelled: context.Canceled,
}

// StatusOf returns the status of an error. Errors that end a scan take precedence.
func StatusOf(err error) byte {
	if err == nil {
		return StatusOK
	}
	for _, s := range []byte{StatusCancelled, StatusGone, StatusClosed, StatusEngineGone, StatusEngineClosed, StatusMissing, StatusHole, StatusNoRegisters} {
		if errors.Is(err, sentinels[s]) {
			return s
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return StatusCancelled
	}
	return StatusFailed
}

// maxReason bounds the text of an error, in bytes.
const maxReason = 4 << 10

// Clip returns s, cut to about 4 KiB at the boundary of a character.
func Clip(s string) string {
	if len(s) <= maxReason {
		return s
	}
	n := maxReason
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// RemoteError is an error on the broker's side, with the broker's text.
type RemoteError struct {
	Text  string
	Cause error // one of sentinels, or nil
}

// Error implements error.
func (e *RemoteError) Error() string { return e.Text }

// Unwrap returns the cause.
func (e *RemoteError) Unwrap() error { return e.Cause }

// ErrorOf returns the error of an answer, or nil for StatusOK.
func ErrorOf(f Frame) error {
	if f.Code == StatusOK {
		return nil
	}
	e := &RemoteError{Text: Clip(string(f.Args))}
	if int(f.Code) < len(sentinels) {
		e.Cause = sentinels[f.Code]
	}
	if e.Text == "" {
		e.Text = fmt.Sprintf("the broker answers with status %d", f.Code)
	}
	return e
}

// Failure returns the answer to a question that failed.
func Failure(err error) Frame {
	return Frame{Code: StatusOf(err), Args: []byte(Clip(err.Error()))}
}

// Encoding of read requests.
const (
	readSize = 12 // bytes of a request: address and size
	// MaxReads bounds the requests in one question.
	MaxReads = 1024
)

// AppendRead appends a request to the arguments of a question. size is in bytes.
func AppendRead(b []byte, addr uint64, size int) []byte {
	b = binary.LittleEndian.AppendUint64(b, addr)
	return binary.LittleEndian.AppendUint32(b, uint32(size))
}

// ParseReads parses the requests of a question. Their buffers lie one after the other in
// the window. ParseReads reuses reqs and fails if the requests are out of bounds.
func ParseReads(args, window []byte, reqs []source.Request) ([]source.Request, error) {
	n := len(args) / readSize
	if n == 0 || len(args)%readSize != 0 || n > MaxReads {
		return nil, fmt.Errorf("a read of %d bytes of requests", len(args))
	}
	reqs = reqs[:0]
	at := uint64(0)
	for ; len(args) > 0; args = args[readSize:] {
		addr, size := binary.LittleEndian.Uint64(args), uint64(binary.LittleEndian.Uint32(args[8:]))
		if size == 0 || size > uint64(len(window))-at || addr+size < addr {
			return nil, fmt.Errorf("a read of %d bytes at %#x, %d into the window", size, addr, at)
		}
		reqs = append(reqs, source.Request{Addr: addr, P: window[at : at+size : at+size]})
		at += size
	}
	return reqs, nil
}

// StatusError returns the error of a status that comes without a text, or nil for StatusOK.
func StatusError(status byte) error {
	text := "it cannot be read"
	if int(status) < len(sentinels) && sentinels[status] != nil {
		text = sentinels[status].Error()
	}
	return ErrorOf(Frame{Code: status, Args: []byte(text)})
}
