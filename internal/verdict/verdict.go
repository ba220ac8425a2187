package verdict

import (
	"fmt"
	"slices"
	"strings"
)

// Action is what should be done to the guest.
type Action string

// Actions.
const (
	Report  Action = "report"  // tell, and touch nothing
	Kill    Action = "kill"    // have the guest terminate the process
	Hold    Action = "hold"    // let no thread of the process run in user mode
	Suspend Action = "suspend" // pause the domain
)

// Actions are all actions.
func Actions() []string {
	return []string{string(Report), string(Kill), string(Hold), string(Suspend)}
}

// ParseAction reads an action's name.
func ParseAction(s string) (Action, error) {
	if slices.Contains(Actions(), s) {
		return Action(s), nil
	}
	return "", fmt.Errorf("action %q: known are report, kill, hold and suspend", s)
}

// Kinds of findings.
const (
	KindSignature = "signature" // the engine knows it
	KindModified  = "modified"  // an image in memory differs from its file
)

// Kinds are all kinds of findings.
func Kinds() []string { return []string{KindSignature, KindModified} }

// Finding is what a policy knows of a finding. What it knows of the process is in
// Subject.
type Finding struct {
	Kind      string
	Signature string
	Image     string  // path of the file behind the image as the guest's kernel has it: without a volume; "" for none
	SHA256    string  // of what was scanned, in hexadecimal
	Cached    string  // SHA-256 of the file itself if the guest's cache holds all of it, else ""
	Memory    bool    // the memory of a region was scanned, not a rebuilt file
	Coverage  float64 // share of the bytes that are known, 0 to 1
	Exact     bool    // the file itself, up to its overlay
}

// Subject is the process that a finding is in. Its text comes from the guest.
type Subject struct {
	Domain     string `json:"domain,omitempty"`
	PID        uint64 `json:"pid"`
	Name       string `json:"name"` // ImageFileName: at most 15 bytes
	Path       string `json:"path,omitempty"`
	Parent     string `json:"parent,omitempty"` // name of the process that made it, "" if that has gone
	ParentPath string `json:"parent_path,omitempty"`
	Session    int32  `json:"session"`            // -1 for none
	Critical   bool   `json:"critical,omitempty"` // Windows stops when it ends
	Exited     bool   `json:"exited,omitempty"`
	Hidden     bool   `json:"hidden,omitempty"`
	Kernel     bool   `json:"kernel,omitempty"`   // a driver, or the kernel itself
	Inferred   bool   `json:"inferred,omitempty"` // the profile that it was read with does not fit its build exactly
}

// Policy is what the operator asked for. The zero Policy reports.
type Policy struct {
	Rules []Rule // the first that matches decides
	Allow Allow  // stands above the rules
	// Surrogates are the programs whose processes may end another process that never
	// runs itself. They are paths from the root of the guest's volume, with upper and
	// lower case equal. If there are none, no process may.
	Surrogates []string
	DryRun     bool // say what would be done, and do nothing
}

// Always is a policy with one rule, which matches every finding of a signature.
func Always(a Action) Policy {
	return Policy{Rules: []Rule{{Name: "--action " + string(a), Action: a, Notify: true}}}
}

// Verdict is what was decided, and why.
type Verdict struct {
	Action   Action `json:"action"`
	Rule     string `json:"rule"` // name of the rule that decided, or RuleDefault, RuleAllow
	Reason   string `json:"reason"`
	Evidence bool   `json:"evidence,omitempty"` // keep what was found
	Notify   bool   `json:"notify,omitempty"`   // tell the command and the webhook
}

// What Verdict.Rule is if no rule of the policy decided. No rule may have these names.
const (
	RuleDefault = "default"
	RuleAllow   = "allow"
)

// Step is what became of one rule on the way to a verdict.
type Step struct {
	Rule    string   `json:"rule"`
	Matches bool     `json:"matches"`
	Why     []string `json:"why"` // the conditions that hold, or, if the rule does not match, the one that fails
}

// Decide applies a policy to a finding.
func Decide(p Policy, f Finding, s Subject) Verdict { return p.decide(f, s, nil) }

// Explain is Decide, and also returns what became of each rule that was asked. The
// allowlists come first.
func Explain(p Policy, f Finding, s Subject) ([]Step, Verdict) {
	var steps []Step
	v := p.decide(f, s, func(st Step) { steps = append(steps, st) })
	return steps, v
}

func (p Policy) decide(f Finding, s Subject, asked func(Step)) Verdict {
	if asked == nil {
		asked = func(Step) {}
	}
	why, allowed := p.Allow.match(f)
	asked(Step{RuleAllow, allowed, []string{why}})
	if allowed {
		return Verdict{Action: Report, Rule: RuleAllow, Reason: why}
	}
	for i := range p.Rules {
		r := &p.Rules[i]
		ok, why := r.match(f, s)
		asked(Step{r.Name, ok, why})
		if ok {
			return r.verdict(s, strings.Join(why, ", "))
		}
	}
	return Verdict{Action: Report, Rule: RuleDefault, Reason: "no rule matches", Notify: true}
}

// verdict is the verdict of a rule that matches, after the guards.
func (r *Rule) verdict(s Subject, why string) Verdict {
	v := Verdict{Action: Report, Rule: r.Name, Reason: why, Evidence: r.Evidence, Notify: r.Notify}
	if guarded := Guarded(r.Action, s); guarded != "" {
		v.Reason = fmt.Sprintf("%s; guarded against %s: %s", why, r.Action, guarded)
		return v
	}
	if slices.Contains(Actions(), string(r.Action)) {
		v.Action = r.Action
	}
	return v
}
