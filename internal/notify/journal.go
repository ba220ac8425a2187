package notify

import (
	"context"
	"fmt"

	"github.com/coreos/go-systemd/v22/journal"
)

// Message ids. journalctl finds all events of a type by them.
const (
	messageFinding = "5b0c4b5f6f0e4f0f9a3b1e0e6f5c7a11"
	messageSweep   = "c1d6a1d94f3b4a3c8a9e2f7f0d2b5e42"
)

// journald is systemd's journal. The name of a field there is VMAV_ and its name in
// Event.fields.
type journald struct{}

func (journald) name() string { return "journal" }
func (journald) log() bool    { return true }
func (journald) close() error { return nil }

func (journald) send(_ context.Context, e *Event) error {
	vars := map[string]string{"SYSLOG_IDENTIFIER": "vmav", "MESSAGE_ID": messageSweep}
	if e.Type == TypeFinding {
		vars["MESSAGE_ID"] = messageFinding
	}
	for k, v := range e.fields() {
		vars["VMAV_"+k] = v
	}
	priority := map[level]journal.Priority{levelInfo: journal.PriInfo, levelWarning: journal.PriWarning, levelError: journal.PriErr}[e.level()]
	if err := journal.Send(e.text(), priority, vars); err != nil {
		return fmt.Errorf("%w (set journal = false where there is none)", err)
	}
	return nil
}
