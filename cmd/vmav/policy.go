package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/policy"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/verdict"
)

var errBoth = errors.New("--action stands in the place of a policy: it does not go with --policy")

func policyCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:  "policy",
		Usage: "check, show and test policies, which say what is done about findings",
		Description: "A policy is a TOML file of rules. The first rule that matches a finding decides\n" +
			"(docs/POLICY.md). Without FILE the commands use the policy that the settings name.",
		Subcommands: []*cli.Command{
			command(&cli.Command{Name: "check", Usage: "say what is wrong with a policy, and which rules never decide", ArgsUsage: "[FILE]",
				Description: "EXIT STATUS\n   0  the policy is good\n" +
					"   1  it has rules that never decide or never do what they say\n   2  it is refused, or an error",
				Action: func(c *cli.Context) error { return runPolicyCheck(c, e) }}),
			command(&cli.Command{Name: "show", Usage: "list a policy's rules in their order", ArgsUsage: "[FILE]", Flags: []cli.Flag{formatFlag()},
				Action: func(c *cli.Context) error { return runPolicyShow(c, e) }}),
			command(&cli.Command{Name: "test", Usage: "say which rule decides on a finding, and why the ones before it do not", ArgsUsage: "[FILE]",
				Description: "The finding is an element of \"findings\" in the JSON of a scan. It needs only the members that\n" +
					"the rules ask for: {\"signature\": \"Win.Test\", \"subject\": {\"pid\": 812, \"name\": \"x.exe\", \"session\": 1}}.\n\n" +
					"EXIT STATUS\n   0    a verdict was printed\n   2    an error\n   130  interrupted",
				Flags: []cli.Flag{formatFlag(), &cli.StringFlag{Name: "finding", Usage: "the finding as `JSON`, or - to read it from standard input",
					Required: true}},
				Action: func(c *cli.Context) error { return runPolicyTest(c, e) }}),
		},
	})
}

// policyFile returns the policy that the operand of a command names, or that of the
// settings.
func (e *env) policyFile(c *cli.Context) (policy.Policy, error) {
	switch c.NArg() {
	case 0:
		s, err := e.settings(c)
		if err != nil {
			return policy.Policy{}, err
		}
		return policy.Load(s.Policy, s.PolicySet)
	case 1:
		return policy.Load(c.Args().First(), true)
	}
	return policy.Policy{}, fmt.Errorf("policy %s is for one FILE", c.Command.Name)
}

func runPolicyCheck(c *cli.Context, e *env) error {
	p, err := e.policyFile(c)
	if err != nil {
		return err
	}
	for _, w := range p.Warnings {
		e.warn("%v", w)
	}
	if len(p.Warnings) > 0 {
		return errFound
	}
	return nil
}

// ruleRow is a rule in vmav policy show.
type ruleRow struct {
	Line       int            `json:"line"`
	Name       string         `json:"name"`
	Conditions []string       `json:"conditions"`
	Action     verdict.Action `json:"action"`
	Evidence   bool           `json:"evidence"`
	Notify     bool           `json:"notify"`
}

var ruleColumns = []report.Column[ruleRow]{
	{Title: "LINE", Text: func(r ruleRow) string { return dash(strings.TrimLeft(fmt.Sprint(r.Line), "0")) }, Right: true},
	{Title: "RULE", Text: func(r ruleRow) string { return r.Name }},
	{Title: "ACTION", Text: func(r ruleRow) string {
		out := string(r.Action)
		if r.Evidence {
			out += ", evidence"
		}
		if r.Notify {
			out += ", notify"
		}
		return out
	}},
	{Title: "IF", Text: func(r ruleRow) string { return dash(strings.Join(r.Conditions, "; ")) }},
}

func runPolicyShow(c *cli.Context, e *env) error {
	f, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	p, err := e.policyFile(c)
	if err != nil {
		return err
	}
	var rows []ruleRow
	if why := p.Allow.String(); why != "" {
		rows = append(rows, ruleRow{Name: verdict.RuleAllow, Conditions: []string{why}, Action: verdict.Report})
	}
	for i := range p.Rules {
		r := &p.Rules[i]
		rows = append(rows, ruleRow{p.Lines[i], r.Name, r.Conditions(), r.Action, r.Evidence, r.Notify})
	}
	rows = append(rows, ruleRow{Name: verdict.RuleDefault, Conditions: []string{}, Action: verdict.Report, Notify: true})
	return report.Rows(e.stdout, f, rows, ruleColumns)
}

// policyTest is what vmav policy test prints.
type policyTest struct {
	Verdict verdict.Verdict `json:"verdict"`
	DryRun  bool            `json:"dry_run,omitempty"`
	Steps   []verdict.Step  `json:"steps"`
}

func runPolicyTest(c *cli.Context, e *env) error {
	f, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	p, err := e.policyFile(c)
	if err != nil {
		return err
	}
	found, err := readFinding(c.String("finding"))
	if err != nil {
		return fmt.Errorf("read the finding: %w", err)
	}
	out := policyTest{DryRun: p.DryRun}
	out.Steps, out.Verdict = verdict.Explain(p.Policy, found.Facts(), found.Subject)
	switch f {
	case report.JSON, report.JSONL:
		return report.Document(e.stdout, out)
	case report.CSV:
		return report.Rows(e.stdout, f, out.Steps, stepColumns)
	}
	if err := report.Rows(e.stdout, f, out.Steps, stepColumns); err != nil {
		return err
	}
	dry := ""
	if out.DryRun {
		dry = " (dry run: nothing would be done)"
	}
	_, err = fmt.Fprintf(e.stdout, "\n%s%s, by rule %q: %s\n", out.Verdict.Action, dry, out.Verdict.Rule, escape.Text(out.Verdict.Reason))
	return err
}

var stepColumns = []report.Column[verdict.Step]{
	{Title: "RULE", Text: func(s verdict.Step) string { return s.Rule }},
	{Title: "MATCHES", Text: func(s verdict.Step) string { return map[bool]string{true: "yes", false: "no"}[s.Matches] }},
	{Title: "BECAUSE", Text: func(s verdict.Step) string { return strings.Join(s.Why, ", ") }},
}

// maxFinding bounds a finding's JSON, in bytes.
const maxFinding = 1 << 20

// readFinding reads a finding as the JSON of a scan has it. If the text lacks something
// that a scan always says, readFinding assumes the most usual: a signature, in a user's
// process.
func readFinding(text string) (finding.Finding, error) {
	data := []byte(text)
	if text == "-" {
		var err error
		if data, err = io.ReadAll(io.LimitReader(os.Stdin, maxFinding)); err != nil {
			return finding.Finding{}, err
		}
	}
	f := finding.Finding{Kind: finding.KindSignature}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return finding.Finding{}, err
	}
	if d.More() {
		return finding.Finding{}, errors.New("there is more than one object")
	}
	s := &f.Subject
	if s.PID == 0 && !s.Kernel {
		s.PID = f.PID
	}
	if s.Name == "" {
		s.Name = f.Process
	}
	if s.Domain == "" {
		s.Domain = f.Domain
	}
	return f, nil
}
