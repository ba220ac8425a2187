package main

import (
	"context"
	"errors"
	"strings"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/tomlfile"
)

// Exit statuses, the same for every command; scripts depend on them.
const (
	exitClean       = 0   // everything was read and nothing was found
	exitFound       = 1   // something was found
	exitError       = 2   // an error, or something could not be read
	exitInterrupted = 130 // SIGINT or SIGTERM
)

const exitStatusHelp = `EXIT STATUS
   0    everything was read and nothing was found
   1    something was found
   2    an error, or something could not be read, which never counts as clean
   130  interrupted`

// errFound ends a command that did its work and found something.
var errFound = errors.New("found")

// errStopped ends a service that was told to stop and did.
var errStopped = errors.New("stopped")

// errIncomplete ends a command whose output already names what could not be read.
var errIncomplete = errors.New("incomplete")

// exitStatus turns an error into an exit status. No other function does.
func exitStatus(ctx context.Context, err error) int {
	switch {
	case errors.Is(err, errStopped):
		return exitClean
	case ctx.Err() != nil:
		return exitInterrupted
	case err == nil:
		return exitClean
	case errors.Is(err, errFound):
		return exitFound
	default:
		return exitError
	}
}

// message returns what is printed for err: one line, or several for a file that is refused.
// It returns "" if the command has already said everything.
func message(err error) string {
	switch {
	case err == nil, errors.Is(err, errStopped), errors.Is(err, errFound), errors.Is(err, errIncomplete):
		return ""
	case errors.Is(err, context.Canceled):
		return "interrupted"
	}
	var all tomlfile.Errors
	if !errors.As(err, &all) {
		return escape.Text(err.Error())
	}
	lines := make([]string, len(all))
	for i, e := range all {
		lines[i] = escape.Text(e.Error())
	}
	return strings.Join(lines, "\nvmav: ")
}
