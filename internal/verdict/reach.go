package verdict

import (
	"fmt"
	"slices"
	"strings"
)

// Unreached says which rules of a policy never decide, or never do what they say, and
// why. The keys are the rules' indexes. A rule that is not in the result may still never
// decide, as only one earlier rule at a time is compared with it.
func (p Policy) Unreached() map[int]string {
	out := make(map[int]string)
	for i := range p.Rules {
		r := &p.Rules[i]
		if why := r.impossible(p.Allow); why != "" {
			out[i] = why
			continue
		}
		for j := range p.Rules[:i] {
			if p.Rules[j].covers(r) {
				out[i] = fmt.Sprintf("never reached: rule %q matches all that it does", p.Rules[j].Name)
				break
			}
		}
	}
	return out
}

// impossible says why a rule can never match or act. It is "" if the rule can.
func (r *Rule) impossible(allow Allow) string {
	touches := r.Action == Kill || r.Action == Hold
	ours := func(g Glob) bool { return hasPrefix(g.text, modifiedPrefix) }
	switch {
	case r.Form == FormMemory && r.Exact != nil && *r.Exact:
		return "never matches: memory is never an exact file"
	case len(r.Kinds) == 0 && len(r.Signatures) > 0 && !slices.ContainsFunc(r.Signatures, func(g Glob) bool { return !ours(g) }):
		return fmt.Sprintf("never matches: %s* are of the kind %q, which it does not name", modifiedPrefix, KindModified)
	case len(r.Hashes) > 0 && contains(allow.Hashes, r.Hashes) && !slices.Contains(r.Kinds, KindModified):
		return "never reached: all of its hashes are allowed"
	case touches && r.Guarded != nil && *r.Guarded:
		return fmt.Sprintf("never acts: what it matches is guarded against %s", r.Action)
	case touches && r.Profile == ProfileInferred:
		return fmt.Sprintf("never acts: with an inferred profile all is guarded against %s", r.Action)
	case touches && len(r.Processes) > 0 && !slices.ContainsFunc(r.Processes, func(g Glob) bool { return !system[strings.ToLower(g.text)] }):
		return fmt.Sprintf("never acts: processes of these names are guarded against %s", r.Action)
	}
	return ""
}

// modifiedPrefix begins the signatures of KindModified.
const modifiedPrefix = "Vmav.Modified."

// covers tells whether r certainly matches everything that o matches.
func (r *Rule) covers(o *Rule) bool {
	return kindsCover(r.Kinds, o.Kinds) &&
		globsCover(r.Signatures, o.Signatures) && globsCover(r.Processes, o.Processes) && globsCover(r.Paths, o.Paths) &&
		globsCover(r.Images, o.Images) && globsCover(r.Parents, o.Parents) && globsCover(r.Domains, o.Domains) &&
		(len(r.Hashes) == 0 || contains(r.Hashes, o.Hashes) && len(o.Hashes) > 0) &&
		r.Sessions.covers(o.Sessions) &&
		(r.Profile == "" || r.Profile == o.Profile) && (r.Form == "" || r.Form == o.Form) && r.MinCoverage <= o.MinCoverage &&
		same(r.Exact, o.Exact) && same(r.Guarded, o.Guarded)
}

func kindsCover(a, b []string) bool {
	or := func(k []string) []string {
		if len(k) == 0 {
			return []string{KindSignature}
		}
		return k
	}
	return !slices.ContainsFunc(or(b), func(k string) bool { return !slices.Contains(or(a), k) })
}

// maxCompared bounds the pairs of patterns of two rules that are compared. If there are
// more, covers is false.
const maxCompared = 1000

func globsCover(a, b []Glob) bool {
	if len(a) == 0 {
		return true
	}
	return len(b) > 0 && len(a)*len(b) <= maxCompared && !slices.ContainsFunc(b, func(g Glob) bool {
		return !slices.ContainsFunc(a, func(c Glob) bool { return c.covers(g) })
	})
}

func contains(a, b Hashes) bool {
	for sum := range b {
		if _, ok := a[sum]; !ok {
			return false
		}
	}
	return true
}

func (s *Sessions) covers(o *Sessions) bool {
	if s == nil {
		return true
	}
	return o != nil && (s.User || !o.User) && !slices.ContainsFunc(o.IDs, func(id int32) bool {
		return !slices.Contains(s.IDs, id) && !(s.User && id > 0)
	})
}

// same tells whether condition a is absent, or equal to b.
func same(a, b *bool) bool { return a == nil || b != nil && *a == *b }
