package verdict

import (
	"fmt"
	"slices"
	"strings"
)

// Rule is a rule of a policy. It matches if all of its conditions hold. An empty
// condition always holds, except Kinds.
type Rule struct {
	Name string

	// Conditions. Of a list one element must match.
	Kinds       []string // none means KindSignature only: other kinds must be named
	Signatures  []Glob
	Processes   []Glob // name of the process: as Windows keeps it, cut to 15 bytes, or the last part of its path
	Paths       []Glob // of the process's program
	Images      []Glob // of the file that the image is of, without its volume
	Parents     []Glob // name of the parent; a pattern for paths is for its program's path
	Domains     []Glob
	Hashes      Hashes // of what was scanned, or of the file in the guest's cache
	Sessions    *Sessions
	Profile     string  // ProfileExact, ProfileInferred
	Form        string  // FormFile, FormMemory
	MinCoverage float64 // share of the bytes that are known, 0 to 1
	Exact       *bool   // the rebuilt file is the file itself
	Guarded     *bool   // a guard forbids to kill or hold the process

	Action   Action
	Evidence bool // keep what was found
	Notify   bool // tell the command and the webhook
}

// Sessions are sessions of Windows.
type Sessions struct {
	IDs  []int32
	User bool // every session but 0, which is that of the services
}

// Qualities of a profile.
const (
	ProfileExact    = "exact"
	ProfileInferred = "inferred"
)

// Forms of what is scanned.
const (
	FormFile   = "file"
	FormMemory = "memory"
)

// match tells whether a rule matches. It returns the conditions that hold, or the first
// that does not.
func (r *Rule) match(f Finding, s Subject) (bool, []string) {
	c := conditions{}
	kinds := r.Kinds
	if len(kinds) == 0 {
		kinds = []string{KindSignature}
	}
	if c.fails(slices.Contains(kinds, f.Kind), "its kind is %s", f.Kind) && len(r.Kinds) == 0 {
		c.why[0] += ", which a rule must name"
	}
	if len(r.Kinds) == 0 && !c.failed {
		c.why = nil // the rule has no such condition
	}
	c.glob("signature", r.Signatures, f.Signature)
	c.glob("process", r.Processes, s.Name, s.Path[strings.LastIndexByte(s.Path, '\\')+1:])
	c.glob("path", r.Paths, s.Path)
	c.glob("image", r.Images, f.Image)
	c.glob("parent", r.Parents, s.Parent, s.ParentPath)
	c.glob("domain", r.Domains, s.Domain)
	if len(r.Hashes) > 0 {
		sum := r.Hashes.has(f)
		c.fails(sum != "", "its SHA-256 is %s the rule's", map[bool]string{true: "one of", false: "none of"}[sum != ""])
	}
	if r.Sessions != nil {
		c.fails(slices.Contains(r.Sessions.IDs, s.Session) || r.Sessions.User && s.Session > 0, "its session is %s", sessionText(s))
	}
	if r.Profile != "" {
		profile := map[bool]string{true: ProfileInferred, false: ProfileExact}[s.Inferred]
		c.fails(profile == r.Profile, "its profile is %s", profile)
	}
	if r.Form != "" {
		form := map[bool]string{true: FormMemory, false: FormFile}[f.Memory]
		c.fails(form == r.Form, "its form is %s", form)
	}
	if r.MinCoverage > 0 {
		c.fails(f.Coverage >= r.MinCoverage, "%.4g %% of it is known, %.4g %% is asked for", 100*f.Coverage, 100*r.MinCoverage)
	}
	if r.Exact != nil {
		c.fails(f.Exact == *r.Exact, "it is %s", map[bool]string{true: "exact", false: "not exact"}[f.Exact])
	}
	if r.Guarded != nil {
		why := Guard(s)
		text := "nothing guards its process"
		if why != "" {
			text = "its process is guarded: " + why
		}
		c.fails((why != "") == *r.Guarded, "%s", text)
	}
	if !c.failed && len(c.why) == 0 {
		c.why = []string{"the rule has no conditions"}
	}
	return !c.failed, c.why
}

func sessionText(s Subject) string {
	if s.Session < 0 {
		return "none"
	}
	return fmt.Sprint(s.Session)
}

// conditions collects the conditions that hold, or the first that fails.
type conditions struct {
	failed bool
	why    []string
}

// fails notes a condition and tells whether it fails. After one has failed, no more are
// noted.
func (c *conditions) fails(ok bool, format string, args ...any) bool {
	if c.failed {
		return false
	}
	text := fmt.Sprintf(format, args...)
	if ok {
		c.why = append(c.why, text)
		return false
	}
	c.failed, c.why = true, []string{text}
	return true
}

// glob is the condition that one of the patterns matches one of the texts.
func (c *conditions) glob(what string, patterns []Glob, texts ...string) {
	if len(patterns) == 0 || c.failed {
		return
	}
	texts = slices.DeleteFunc(slices.Compact(texts), func(s string) bool { return s == "" })
	for _, g := range patterns {
		for _, s := range texts {
			if g.Match(s) {
				c.fails(true, "%s %q matches %q", what, s, g)
				return
			}
		}
	}
	if len(texts) == 0 {
		c.fails(false, "its %s is not known", what)
		return
	}
	names := make([]string, 0, 4)
	for _, g := range patterns[:min(len(patterns), 3)] {
		names = append(names, fmt.Sprintf("%q", g))
	}
	if n := len(patterns) - len(names); n > 0 {
		names = append(names, fmt.Sprintf("%d more", n))
	}
	c.fails(false, "%s %q does not match %s", what, strings.Join(texts, " or "), strings.Join(names, ", "))
}
