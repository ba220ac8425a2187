package history

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

// Line is one line of an account in words. Its text can come from the guest and is not
// escaped.
type Line struct{ Label, Text string }

const clock = "2006-01-02 15:04:05.000 MST"

// Explain says in words what was found and where, what was decided and why, what was
// done, and what was seen afterwards.
func Explain(d *Detail) []Line {
	a := account{}
	what := "Finding"
	if d.Kind == KindKill {
		what = "Kill"
	}
	a.say("Record", "%s %d of %s", strings.ToLower(what), d.ID, d.Time.Format(clock))
	a.found(d)
	a.decided(d)
	a.steps(d)
	a.evidence(d)
	a.run(&d.Run)
	return a
}

// ExplainRun says in words what a run did.
func ExplainRun(s *Scan) []Line {
	a := account{}
	a.say("Record", "%s %d, begun %s", s.Operation, s.ID, s.Began.Format(clock))
	a.say("Domain", "%s", domainText(s))
	a.run(s)
	if s.Result != nil {
		for _, e := range s.Result.Errors {
			a.say("Error", "%s: %s", e.What, e.Error)
		}
		if s.Omitted > 0 {
			a.say("Error", "%d more were not kept", s.Omitted)
		}
	}
	return a
}

type account []Line

func (a *account) say(label, format string, args ...any) {
	*a = append(*a, Line{label, fmt.Sprintf(format, args...)})
}

func domainText(s *Scan) string {
	text := s.Domain
	if s.UUID != "" {
		text += " (" + s.UUID + ")"
	}
	if r := s.Result; r != nil && r.Build != "" {
		text += ", Windows " + r.Build
		if r.Profile != "" {
			text += ", profile " + r.Profile
		}
		if r.Source != "" {
			text += ", read through " + r.Source
		}
	}
	return text
}

// found says what was found, where, and how far that can be trusted.
func (a *account) found(d *Detail) {
	a.say("Domain", "%s", domainText(&d.Run))
	f := &d.Finding
	where := finding.Where(f.PID, f.Process)
	if f.Kind == KindKill {
		a.say("Process", "%s: %s", where, f.Image)
		return
	}
	switch {
	case f.Kind == finding.KindModified:
		a.say("Found", "%s: an image in memory is not what its file is: %s", f.Signature, f.Detail)
	case f.Fidelity.Form == finding.FormMemory:
		a.say("Found", "the engine knows memory as %s", f.Signature)
	default:
		a.say("Found", "the engine knows the rebuilt file as %s", f.Signature)
	}
	a.say("Where", "%s: %s, %d bytes at %s", where, f.Image, f.Size, f.Base)
	if r := f.Region; r != nil {
		text := fmt.Sprintf("memory %s to %s, %d bytes of it executable; ", r.Start, r.End, r.Executable)
		switch r.Type {
		case finding.RegionPrivate:
			text += "allocated by the process, no file stands behind it"
		case finding.RegionMapped:
			text += "a view of " + r.Image + " that is no image"
		case finding.RegionImage:
			text += "pages of an image that differ from those of its file"
		}
		if r.PE {
			text += "; it begins with the headers of an image that no loader has mapped"
		}
		a.say("Where", "%s", text)
	}
	a.say("Fidelity", "%s", fidelityText(f.Fidelity))
	a.say("SHA-256", "%s", f.SHA256)
}

func fidelityText(f finding.Fidelity) string {
	switch {
	case f.Form == finding.FormMemory:
		return fmt.Sprintf("memory as it runs, %.1f %% of it present, %d bytes were not", 100*f.Coverage, f.Missing)
	case f.Exact:
		return "exact: the file that was loaded, up to its overlay; its preferred base by: " + f.Base
	}
	return fmt.Sprintf("%.1f %% of the file's bytes are known, the pages of %d were not present; its preferred base by: %s", 100*f.Coverage, f.Missing, f.Base)
}

// decided says what the policy decided. Older records have no field for the rule.
func (a *account) decided(d *Detail) {
	if d.Kind == KindKill {
		a.say("Decided", "kill, by hand, by %s", d.Run.Who)
		return
	}
	var r struct {
		Verdict struct{ Rule string }
	}
	_ = json.Unmarshal(d.Record, &r) // it could be read before
	by := ""
	if r.Verdict.Rule != "" {
		by = fmt.Sprintf(", by the rule %q", r.Verdict.Rule)
	}
	a.say("Decided", "%s%s: %s", d.Verdict.Action, by, d.Verdict.Reason)
}

// steps says what was done and what was seen.
func (a *account) steps(d *Detail) {
	outcome := false
	for _, s := range d.Steps {
		switch s.State {
		case StateRequested:
			a.say("Done", "%s requested %s", s.Action, s.Time.Format(clock))
		case StateOutcome:
			outcome = true
			if s.Outcome != nil {
				a.say("Seen", "%s: %s, recorded %s", s.Action, s.Text(), s.Time.Format(clock))
			}
			if s.Kill != nil {
				a.kill(s.Kill)
			}
			if s.Act != nil && s.Act.Applied != nil {
				a.say("Seen", "applied after %s", *s.Act.Applied)
			}
		default:
			a.say("Done", "%s %s %s", s.Action, s.State, s.Time.Format(clock))
		}
	}
	switch {
	case outcome:
	case d.Verdict.Action == verdict.Report && len(d.Steps) == 0:
		a.say("Done", "nothing: it was reported, and the guest was not touched")
	case d.Run.Ended == nil:
		a.say("Seen", "nothing yet: the run has not ended, or was cut off; what became of it is not known")
	default:
		a.say("Seen", "nothing was recorded")
	}
}

func (a *account) kill(k *finding.Kill) {
	if k.Method != "" {
		text := "by way of its own thread"
		if k.Method == finding.MethodSurrogate {
			text = "by way of a surrogate"
		}
		if k.Applied != nil {
			text += fmt.Sprintf(", applied after %s", *k.Applied)
		}
		if k.Dead != nil {
			text += fmt.Sprintf(", its end seen after %s", *k.Dead)
		}
		a.say("Seen", "%s", text)
	}
	if k.ExitStatus != nil {
		text := fmt.Sprintf("the guest says: exit status %s", *k.ExitStatus)
		if k.Exited != nil {
			text += ", exited " + k.Exited.UTC().Format(clock)
		}
		a.say("Seen", "%s", text)
	}
	for _, s := range k.Surrogates {
		var calls []string
		for _, c := range s.Calls {
			calls = append(calls, fmt.Sprintf("%s %s", c.Name, c.Status))
		}
		a.say("Seen", "surrogate %s, pid %d, thread %d: %s; its context afterwards: %s %s", s.Name, s.PID, s.Thread, strings.Join(calls, ", "), s.Context,
			s.Error)
	}
	for _, line := range k.Plan {
		a.say("Seen", "%s", line)
	}
}

func (a *account) evidence(d *Detail) {
	if d.Kind == KindKill {
		return
	}
	for _, x := range d.Evidence {
		if x.Error != "" {
			a.say("Evidence", "%s: not kept: %s", x.Kind, x.Error)
			continue
		}
		a.say("Evidence", "%s, %d bytes: vmav evidence extract %s -o FILE", x.Kind, x.Size, x.SHA256)
	}
	if len(d.Evidence) == 0 {
		a.say("Evidence", "none was kept")
	}
}

// run says who did it, with what, and how far it got.
func (a *account) run(s *Scan) {
	text := fmt.Sprintf("%s %d by %s (uid %d), trigger %s", s.Operation, s.ID, s.Who, s.Who.UID, s.Trigger)
	if s.Command != "" {
		text += ": " + s.Command
	}
	a.say("Run", "%s", text)
	if s.Engine != nil {
		text = s.Engine.Version
		if s.Engine.Built != nil {
			text += fmt.Sprintf(", database %s of %s", s.Engine.Database, s.Engine.Built.Format(time.DateOnly))
		} else {
			text += ", signatures of unknown age"
		}
		a.say("Engine", "%s", text)
	}
	if s.Ended == nil {
		a.say("Result", "none: it has not ended, or was cut off")
		return
	}
	r := s.Result
	text = fmt.Sprintf("%s after %s", s.Status, s.Ended.Sub(s.Began).Round(time.Millisecond))
	if r != nil && s.Operation == OperationScan {
		text += fmt.Sprintf(": %d processes, %d images, %d distinct files, %d findings, %d errors", r.Processes, r.Images, r.Files, s.Findings,
			len(r.Errors)+s.Omitted)
	}
	if r != nil && r.Reason != "" {
		text += "; " + r.Reason
	}
	a.say("Result", "%s", text)
}
