// Package answer is what a scanning engine says of a file: its result, and the errors that
// a caller decides on. It is apart from package clam, which starts processes and opens
// sockets, so that whoever only reads answers need not import those.
package answer

import "errors"

// Errors of an engine; test with errors.Is.
var (
	// ErrEngineGone reports that clamd ended while it was in use.
	ErrEngineGone = errors.New("clamd is gone")
	// ErrNoEngine reports that no clamd answers and none could be started.
	ErrNoEngine = errors.New("no ClamAV engine")
)

// Result is the engine's answer for one file.
type Result struct {
	Signature string // what was found, "" for nothing
	Skipped   string // why the file was not looked at in full, "" when it was
}
