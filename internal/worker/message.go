package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unicode/utf8"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// Kinds of questions. Every one is answered.
const (
	askJob       = 1  // version, Landlock's ABI → the next job, when there is one
	askRanges    = 2  // → guest RAM, 16 bytes a range
	askRead      = 3  // addresses and sizes → one status for each, data in the window
	askRegisters = 4  // → JSON
	askProfile   = 5  // identity as JSON → the profile's file
	askNear      = 6  // version → list of profiles as JSON
	askNearOpen  = 7  // index into that list → the profile's file
	askMore      = 8  // → the next piece of the answer before
	askContent   = 9  // a piece of what the next scan or finding is about
	askScan      = 10 // total size of the content, name; its last piece → what the engine says
	askFound     = 11 // finding as JSON → noted
	askProblems  = 12 // errors as JSON → noted
	askProgress  = 13 // done, total → noted
	askDone      = 14 // the rest of the result as JSON, when all other answers were had
	askPageIn    = 15 // action as JSON → taken up
	askCancel    = 16 // cookie → whether it was pending
	askEvent     = 17 // → the next event as JSON, or nothing yet
	askRecall    = 18 // key → whether there is a record, which is in the window
	askRemember  = 19 // key; a record in the window → noted
	askClean     = 20 // SHA-256 → whether the engine found nothing in that content
	askSeen      = 21 // images that were looked at, seenSize bytes each, in the window → noted
	lastKind     = askSeen
)

// Statuses of answers. Those but ok carry a text for people.
const (
	statusOK = iota
	statusHole
	statusGone
	statusClosed
	statusNoRegisters
	statusEngineGone
	statusEngineClosed
	statusMissing // no profile
	statusCancelled
	statusFailed // for a reason that nobody decides on
)

// sentinels are the errors that a caller decides on, by status.
var sentinels = [...]error{
	statusHole: source.ErrHole, statusGone: source.ErrGone, statusClosed: source.ErrClosed,
	statusNoRegisters: source.ErrNoRegisters, statusEngineGone: clam.ErrEngineGone,
	statusEngineClosed: os.ErrClosed, statusMissing: winstruct.ErrNoProfile, statusCancelled: context.Canceled,
}

// statusOf is the status of an error; errors that mean the end of a sweep come first.
func statusOf(err error) byte {
	if err == nil {
		return statusOK
	}
	for _, s := range []byte{statusCancelled, statusGone, statusClosed, statusEngineGone, statusEngineClosed, statusMissing, statusHole, statusNoRegisters} {
		if errors.Is(err, sentinels[s]) {
			return s
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return statusCancelled
	}
	return statusFailed
}

// maxReason bounds an error's text, in bytes.
const maxReason = 4 << 10

func clip(s string) string {
	if len(s) <= maxReason {
		return s
	}
	n := maxReason
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// remoteError is an error of the broker's side, in its words.
type remoteError struct {
	text  string
	cause error // one of sentinels, or nil
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.cause }

// errorOf is the error of an answer; nil for ok.
func errorOf(f frame) error {
	if f.code == statusOK {
		return nil
	}
	e := &remoteError{text: clip(string(f.args))}
	if int(f.code) < len(sentinels) {
		e.cause = sentinels[f.code]
	}
	if e.text == "" {
		e.text = fmt.Sprintf("the broker answers with status %d", f.code)
	}
	return e
}

// failure is the answer to a question that failed.
func failure(err error) frame {
	return frame{code: statusOf(err), args: []byte(clip(err.Error()))}
}

// Reads: 12 bytes a request.
const (
	readSize = 12
	maxReads = 1024
)

func appendRead(b []byte, addr uint64, size int) []byte {
	b = binary.LittleEndian.AppendUint64(b, addr)
	return binary.LittleEndian.AppendUint32(b, uint32(size))
}

// parseReads makes requests of a question; their buffers lie one behind the other in
// the window. reqs is reused.
func parseReads(args, window []byte, reqs []source.Request) ([]source.Request, error) {
	n := len(args) / readSize
	if n == 0 || len(args)%readSize != 0 || n > maxReads {
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
