package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"vmav.dev/vmav/internal/escape"
)

// Bounds of a command's run.
const (
	commandTimeout = 30 * time.Second
	commandOutput  = 4096 // bytes of its output that are kept
	commandGrace   = time.Second
)

// command is a program that is run once for each event. It gets the event's JSON on its
// standard input. There is no shell, and nothing of the event is in its arguments or its
// environment.
type command struct {
	argv    []string
	timeout time.Duration
}

func (c *command) name() string { return "command " + filepath.Base(c.argv[0]) }
func (*command) log() bool      { return false }
func (*command) close() error   { return nil }

func (c *command) send(ctx context.Context, e *Event) error {
	input, err := json.Marshal(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	out := &head{}
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), out, out
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	// The program is killed together with what it starts.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = commandGrace
	err = cmd.Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("it was not done in %v and was killed", c.timeout)
	case errors.Is(err, exec.ErrWaitDelay):
		return nil // the program has ended, but something that it started still has its output open
	}
	if said := strings.TrimSpace(out.kept.String()); said != "" {
		err = fmt.Errorf("%w: it said \"%s\"", err, escape.Text(said))
	}
	return err
}

// head keeps the first commandOutput bytes that are written to it. The buffer is not
// embedded, because its ReadFrom would keep everything.
type head struct{ kept bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	if room := commandOutput - h.kept.Len(); room > 0 {
		h.kept.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
