package notify

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

// Types of events.
const (
	TypeFinding = "finding" // a finding, its verdict and its outcome
	TypeSweep   = "sweep"   // how a domain's sweep ended
)

// Event is one thing that is told. The command and the webhook get its JSON.
type Event struct {
	ID      string           `json:"id"` // random, and the same in each try to deliver it
	Type    string           `json:"type"`
	Time    time.Time        `json:"time"`
	Host    string           `json:"host"`
	Trigger string           `json:"trigger"` // who asked: "cli", "hook", "watch", "timer"
	Domain  string           `json:"domain"`
	UUID    string           `json:"uuid,omitempty"`
	DryRun  bool             `json:"dry_run,omitempty"` // nothing was done, only planned
	Finding *finding.Finding `json:"finding,omitempty"`
	Sweep   *Sweep           `json:"sweep,omitempty"`
}

// Sweep is how a domain's sweep ended.
type Sweep struct {
	Status    string  `json:"status"` // as finding.Scan has it
	Reason    string  `json:"reason,omitempty"`
	Processes int     `json:"processes"`
	Images    int     `json:"images"`
	Findings  int     `json:"findings"`
	Errors    int     `json:"errors"`
	Seconds   float64 `json:"seconds"`
}

func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// level is how important an event is.
type level int

const (
	levelInfo    level = iota
	levelWarning       // something was found, or could not be read
	levelError         // something should have been done, and was not
)

func (e *Event) level() level {
	switch {
	case e.Finding != nil && e.Finding.Verdict.Rule == verdict.RuleAllow:
		return levelInfo
	case e.Finding != nil && !e.Finding.Done():
		return levelError
	case e.Finding != nil, e.Sweep.Status == finding.StatusIncomplete, e.Sweep.Status == finding.StatusFailed:
		return levelWarning
	}
	return levelInfo
}

// text is the event as one escaped line for people.
func (e *Event) text() string {
	if f := e.Finding; f != nil {
		return cut(fmt.Sprintf("%s: %s: %s: %s FOUND; %s by rule %s: %s", escape.Text(e.Domain), escape.Text(finding.Tag(f.PID, f.Process)),
			escape.Text(f.Image), escape.Text(f.Signature), f.Verdict.Action, escape.Text(f.Verdict.Rule), escape.Text(f.Text())))
	}
	s := e.Sweep
	why := ""
	if s.Reason != "" {
		why = ": " + escape.Text(s.Reason)
	}
	return cut(fmt.Sprintf("%s: %s%s: %d processes, %d images, %d findings, %d errors in %.1f s", escape.Text(e.Domain), s.Status, why,
		s.Processes, s.Images, s.Findings, s.Errors, s.Seconds))
}

// maxText bounds a line or a field, in bytes. A path of a guest can have 64 KiB.
const maxText = 2048

func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "…"
}

// fields are the parts of the event by name, escaped.
func (e *Event) fields() map[string]string {
	out := map[string]string{"ID": e.ID, "TYPE": e.Type, "TRIGGER": e.Trigger, "DOMAIN": e.Domain, "DOMAIN_UUID": e.UUID}
	if f := e.Finding; f != nil {
		for k, v := range map[string]string{"PID": fmt.Sprint(f.PID), "PROCESS": f.Process, "PATH": f.Subject.Path, "IMAGE": f.Image, "SIGNATURE": f.Signature,
			"KIND": f.Kind, "SHA256": f.SHA256, "VERDICT": string(f.Verdict.Action), "RULE": f.Verdict.Rule, "REASON": f.Verdict.Reason,
			"ACTION": string(f.Action), "OUTCOME": f.Text()} {
			out[k] = v
		}
	}
	if s := e.Sweep; s != nil {
		for k, v := range map[string]string{"STATUS": s.Status, "REASON": s.Reason, "FINDINGS": fmt.Sprint(s.Findings), "ERRORS": fmt.Sprint(s.Errors)} {
			out[k] = v
		}
	}
	for k, v := range out {
		out[k] = cut(escape.Text(v))
	}
	return out
}
