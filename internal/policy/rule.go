package policy

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"

	"vmav.dev/vmav/internal/tomlfile"
	"vmav.dev/vmav/internal/verdict"
)

// rule reads a [[rule]].
func (rd *reader) rule(t *tomlfile.Table) verdict.Rule {
	r := verdict.Rule{Notify: true}
	t.String("name", &r.Name, name)
	if !t.Has("name") {
		t.Fail("name", "a rule must have one: verdicts name it")
	}
	t.Strings("kind", &r.Kinds, tomlfile.OneOf(verdict.Kinds()...))
	nonEmpty(t, "kind")
	r.Signatures = rd.globs(t, "signature", verdict.NewGlob)
	r.Processes = rd.globs(t, "process", processGlob)
	r.Paths = rd.globs(t, "path", verdict.NewPathGlob)
	r.Images = rd.globs(t, "image", imageGlob)
	r.Parents = rd.globs(t, "parent", func(s string) (verdict.Glob, error) {
		if strings.Contains(s, `\`) {
			return verdict.NewPathGlob(s)
		}
		return verdict.NewGlob(s)
	})
	r.Domains = rd.globs(t, "domain", verdict.NewGlob)
	if r.Hashes = hashes(t, "hash"); len(r.Hashes) == 0 {
		r.Hashes = nil
	}
	r.Sessions = sessions(t)
	t.String("profile", &r.Profile, tomlfile.OneOf(verdict.ProfileExact, verdict.ProfileInferred))
	t.String("form", &r.Form, tomlfile.OneOf(verdict.FormFile, verdict.FormMemory))
	t.Share("min_coverage", &r.MinCoverage)
	r.Exact = boolean(t, "exact")
	r.Guarded = boolean(t, "guarded")
	action := ""
	t.String("action", &action, tomlfile.OneOf(verdict.Actions()...))
	if r.Action = verdict.Action(action); !t.Has("action") {
		t.Fail("action", "a rule must have one: %s", strings.Join(verdict.Actions(), ", "))
	}
	t.Bool("evidence", &r.Evidence)
	t.Bool("notify", &r.Notify)
	return r
}

func name(s string) error {
	switch {
	case s == verdict.RuleAllow || s == verdict.RuleDefault || strings.HasPrefix(s, "--"):
		return fmt.Errorf("%q: verdicts of no rule are called so", s)
	case strings.TrimSpace(s) == "":
		return errors.New("it is empty")
	case len(s) > maxName:
		return fmt.Errorf("it has %d bytes: %d are possible", len(s), maxName)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%q has characters that cannot be printed", s)
	}
	return nil
}

func processGlob(s string) (verdict.Glob, error) {
	if strings.Contains(s, `\`) {
		return verdict.Glob{}, fmt.Errorf("%q is a path: the key for that is path", s)
	}
	return verdict.NewGlob(s)
}

// program checks an element of surrogate. It must be a path from the root of a volume,
// and no pattern.
func program(s string) error {
	if !strings.HasPrefix(s, `\`) || strings.HasPrefix(s, `\\`) || strings.ContainsAny(s, "*?") || strings.HasPrefix(strings.ToLower(s), `\device\`) {
		return fmt.Errorf(`%q: write a path without its volume, as \Windows\System32\svchost.exe`, s)
	}
	return nil
}

// sessions reads the key session: numbers, or "user" for every session but that of the
// services.
func sessions(t *tomlfile.Table) *verdict.Sessions {
	out := &verdict.Sessions{}
	for v, fail := range t.Values("session") {
		switch x := v.(type) {
		case int64:
			if x < 0 || x > math.MaxInt32 {
				fail(fmt.Errorf("%d is no session", x))
				continue
			}
			out.IDs = append(out.IDs, int32(x))
		case string:
			if x != "user" {
				fail(fmt.Errorf(`%q: write a number, or "user" for every session but 0`, x))
				continue
			}
			out.User = true
		default:
			fail(errors.New(`it is no session: write a number, or "user" for every session but 0`))
		}
	}
	nonEmpty(t, "session")
	if !t.Has("session") {
		return nil
	}
	return out
}

func boolean(t *tomlfile.Table, key string) *bool {
	v := new(bool)
	t.Bool(key, v)
	if !t.Has(key) {
		return nil
	}
	return v
}
