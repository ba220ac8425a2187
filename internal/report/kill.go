package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/finding"
)

// KillColumns are the columns of a list of kills.
var KillColumns = []Column[finding.Kill]{
	{Title: "DOMAIN", Text: func(k finding.Kill) string { return k.Domain }},
	{Title: "PID", Text: func(k finding.Kill) string { return strconv.FormatUint(k.Target.PID, 10) }, Right: true},
	{Title: "PROCESS", Text: func(k finding.Kill) string { return k.Target.Name }},
	{Title: "OUTCOME", Text: func(k finding.Kill) string { return string(k.Code) }},
	{Title: "METHOD", Text: func(k finding.Kill) string { return k.Method }},
	{Title: "REASON", Text: func(k finding.Kill) string { return k.Reason }},
}

// WriteKill writes a kill for people: its outcome on one line, then what was done to which
// process.
func WriteKill(w io.Writer, k *finding.Kill) error {
	p := printer{w: w}
	how := ""
	if k.Method != "" && !k.DryRun {
		how = " (" + k.Method
		if k.Applied != nil {
			how += fmt.Sprintf(", applied after %v", *k.Applied)
		}
		if k.Dead != nil {
			how += fmt.Sprintf(", dead after %v", *k.Dead)
		}
		if k.ExitStatus != nil {
			how += fmt.Sprintf(", exit status %v", *k.ExitStatus)
		}
		how += ")"
	}
	p.line("%s: %s[%d]: %s%s", escape.Text(k.Domain), escape.Text(k.Target.Name), k.Target.PID, escape.Text(k.Text()), how)
	for _, s := range k.Surrogates {
		var calls []string
		for _, c := range s.Calls {
			calls = append(calls, fmt.Sprintf("%s %v", c.Name, c.Status))
		}
		p.line("  surrogate %s[%d], thread %d: %s; context %s", escape.Text(s.Name), s.PID, s.Thread, strings.Join(calls, ", "), escape.Text(s.Context))
		if s.Error != "" {
			p.line("    %s", escape.Text(s.Error))
		}
	}
	for _, line := range k.Plan {
		p.line("  %s", escape.Text(line))
	}
	return p.err
}
