package verdict

import (
	"fmt"
	"slices"
	"strings"
)

// Conditions returns the rule's conditions in words. There are none if the rule matches
// every finding of a signature.
func (r *Rule) Conditions() []string {
	out := []string{}
	list := func(what string, all []string) {
		if len(all) > 0 {
			out = append(out, what+" "+strings.Join(all, " or "))
		}
	}
	list("kind", r.Kinds)
	for _, c := range []struct {
		what  string
		globs []Glob
	}{{"signature", r.Signatures}, {"process", r.Processes}, {"path", r.Paths}, {"image", r.Images}, {"parent", r.Parents}, {"domain", r.Domains}} {
		var texts []string
		for _, g := range c.globs {
			texts = append(texts, g.text)
		}
		list(c.what, texts)
	}
	if n := len(r.Hashes); n > 0 {
		out = append(out, fmt.Sprintf("hash one of %d", n))
	}
	if s := r.Sessions; s != nil {
		var texts []string
		for _, id := range s.IDs {
			texts = append(texts, fmt.Sprint(id))
		}
		if s.User {
			texts = append(texts, "user")
		}
		list("session", texts)
	}
	if r.Profile != "" {
		out = append(out, r.Profile+" profile")
	}
	if r.Form != "" {
		out = append(out, "form "+r.Form)
	}
	if r.MinCoverage > 0 {
		out = append(out, fmt.Sprintf("coverage from %.4g on", r.MinCoverage))
	}
	not := map[bool]string{false: "not "}
	if r.Exact != nil {
		out = append(out, not[*r.Exact]+"exact")
	}
	if r.Guarded != nil {
		out = append(out, not[*r.Guarded]+"guarded")
	}
	return out
}

// String says in words what an allowlist allows. It is "" for nothing.
func (a Allow) String() string {
	var out []string
	if n := len(a.Hashes); n > 0 {
		out = append(out, fmt.Sprintf("hash one of %d", n))
	}
	for _, g := range a.Paths {
		out = append(out, "image "+g.text)
	}
	return strings.Join(out, " or ")
}

// Acts tells whether any rule does something to a guest. If actions are given, only
// these count.
func (p Policy) Acts(of ...Action) bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return r.Action != Report && (len(of) == 0 || slices.Contains(of, r.Action))
	})
}
