package report

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/finding"
)

// FindingColumns are the columns of the table of findings.
var FindingColumns = []Column[finding.Finding]{
	{Title: "DOMAIN", Text: func(f finding.Finding) string { return f.Domain }},
	{Title: "PID", Text: func(f finding.Finding) string { return strconv.FormatUint(f.PID, 10) }, Right: true},
	{Title: "PROCESS", Text: func(f finding.Finding) string { return finding.Owner(f.PID, f.Process) }},
	{Title: "IMAGE", Text: func(f finding.Finding) string { return f.Image }},
	{Title: "SIGNATURE", Text: func(f finding.Finding) string { return f.Signature }},
	{Title: "FIDELITY", Text: func(f finding.Finding) string { return f.Fidelity.String() }},
	{Title: "ACTION", Text: func(f finding.Finding) string { return string(f.Action) }},
	{Title: "OUTCOME", Text: func(f finding.Finding) string { return f.Text() }},
}

// WriteScan writes a scan for people: a line like clamscan's for each finding and error,
// then the findings as a table and the summary. If infectedOnly is set, it writes only
// findings and errors, and nothing else if there are none.
func WriteScan(w io.Writer, s *finding.Sweep, infectedOnly bool) error {
	p := printer{w: w}
	var all []finding.Finding
	for _, d := range s.Domains {
		if d.Status == finding.StatusSkipped && !infectedOnly {
			p.line("%s: skipped: %s", escape.Text(d.Name), escape.Text(d.Reason))
		}
		if d.Status == finding.StatusFailed {
			p.line("%s: ERROR: %s", escape.Text(d.Name), escape.Text(d.Reason))
		}
		for _, f := range d.Findings {
			what := f.Signature
			if f.Detail != "" {
				what += " (" + f.Detail + ")"
			}
			p.line("%s: %s: %s: %s FOUND", escape.Text(d.Name), escape.Text(finding.Tag(f.PID, f.Process)), escape.Text(f.Image), escape.Text(what))
		}
		for _, e := range d.Errors {
			p.line("%s: %s: ERROR: %s", escape.Text(d.Name), escape.Text(e.What), escape.Text(e.Error))
		}
		if !infectedOnly && (d.Status == finding.StatusScanned || d.Status == finding.StatusIncomplete) {
			p.line("%s: %s: Windows %s, %d processes, %d images, %d distinct files, %d findings, %d errors", escape.Text(d.Name), d.Status,
				escape.Text(d.Build), d.Processes, d.Images, d.Files, len(d.Findings), len(d.Errors))
			if d.Profile == finding.ProfileInferred {
				p.line("%s: profile: inferred from Windows %s: there is none for %s; vmav profile fetch %s gets it", escape.Text(d.Name),
					escape.Text(d.InferredFrom), escape.Text(d.Missing), escape.Text(d.Missing))
			}
		}
		all = append(all, d.Findings...)
	}
	if p.err != nil {
		return p.err
	}
	if len(all) > 0 {
		p.line("")
		if err := Rows(w, Table, all, FindingColumns); err != nil {
			return err
		}
	}
	if infectedOnly && len(all) == 0 {
		return p.err
	}
	sum := s.Summary
	p.line("")
	p.line("Engine:     %s", escape.Text(s.Engine.Version+databaseText(s.Engine)))
	p.line("Domains:    %d scanned, %d incomplete, %d skipped, %d failed", sum.Scanned, sum.Incomplete, sum.Skipped, sum.Failed)
	if sum.Ended == 0 {
		p.line("Processes:  %d", sum.Processes)
	} else {
		p.line("Processes:  %d, %d of them ended before all was read", sum.Processes, sum.Ended)
	}
	p.line("Images:     %d", sum.Images)
	p.line("Findings:   %d", sum.Findings)
	p.line("Errors:     %d", sum.Errors)
	p.line("Time:       %.1f s", sum.Seconds)
	if id := firstRecord(all); id != 0 {
		p.line("Recorded:   vmav history show %d explains the first finding", id)
	}
	return p.err
}

// firstRecord returns the smallest ID of the findings, or 0 if none has one.
func firstRecord(findings []finding.Finding) (id int64) {
	for _, f := range findings {
		if f.ID != 0 && (id == 0 || f.ID < id) {
			id = f.ID
		}
	}
	return id
}

func databaseText(e finding.Engine) string {
	if e.Built == nil {
		if e.Private {
			return ", private, signatures of unknown age"
		}
		return ", signatures of unknown age"
	}
	return fmt.Sprintf(", database %s of %s", e.Database, e.Built.Format(time.DateOnly))
}

// printer keeps the first error of many writes.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}
