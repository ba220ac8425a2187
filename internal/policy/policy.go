package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"vmav.dev/vmav/internal/tomlfile"
	"vmav.dev/vmav/internal/verdict"
)

// Bounds of a policy.
const (
	MaxRules     = 1000
	MaxPatterns  = 10000     // in all rules and allowlists
	MaxHashFile  = 128 << 20 // bytes of one list of hashes
	maxName      = 100       // bytes of a rule's name
	maxHashFiles = 100
)

// Policy is a policy, and where in its file things are.
type Policy struct {
	verdict.Policy
	File     string          // "" for the default policy
	Lines    []int           // where each rule begins
	Warnings tomlfile.Errors // about rules that never decide, or never do what they say
}

// Default is the policy without a file. It reports every finding, and notifies.
func Default() Policy {
	return Policy{Policy: verdict.Policy{Surrogates: verdict.DefaultSurrogates()}}
}

// Load reads a policy file. If the file does not exist and mustExist is false, the
// policy is Default.
func Load(path string, mustExist bool) (Policy, error) {
	data, err := tomlfile.Read(path, tomlfile.MaxSize)
	if !mustExist && errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Policy{}, fmt.Errorf("policy: %w", err)
	}
	p, err := Parse(path, data, func(list string) ([]byte, error) {
		if !filepath.IsAbs(list) {
			list = filepath.Join(filepath.Dir(path), list)
		}
		return tomlfile.Read(list, MaxHashFile)
	})
	p.File = path
	return p, err
}

// Parse reads the text of a policy. Messages use name as the file's. Lists of hashes are
// read through readList. On error there is no policy.
func Parse(name string, data []byte, readList func(path string) ([]byte, error)) (Policy, error) {
	f, t, err := tomlfile.Parse(name, data)
	if err != nil {
		return Policy{}, err
	}
	p := Default()
	t.Bool("dry_run", &p.DryRun)
	t.Strings("surrogate", &p.Surrogates, program)
	r := &reader{}
	p.Allow = r.allow(t.Table("allow"), readList)
	rules := t.Tables("rule")
	if len(rules) > MaxRules {
		t.Fail("rule", "%d rules: %d are possible", len(rules), MaxRules)
		rules = nil
	}
	names := make(map[string]int)
	for _, t := range rules {
		rule := r.rule(t)
		if first := names[rule.Name]; first > 0 {
			t.Fail("name", "%q is the name of the rule of line %d, too", rule.Name, first)
		} else if rule.Name != "" {
			names[rule.Name] = t.Line()
		}
		p.Rules, p.Lines = append(p.Rules, rule), append(p.Lines, t.Line())
	}
	if err := f.Done(); err != nil {
		return Policy{}, err
	}
	unreached := p.Unreached()
	for _, i := range slices.Sorted(maps.Keys(unreached)) {
		p.Warnings = append(p.Warnings, &tomlfile.Error{File: name, Line: p.Lines[i], Key: fmt.Sprintf("rule %q", p.Rules[i].Name),
			Err: errors.New(unreached[i])})
	}
	return p, nil
}

// reader counts the patterns of a policy while it is read.
type reader struct{ patterns int }

func (r *reader) allow(t *tomlfile.Table, readList func(string) ([]byte, error)) (a verdict.Allow) {
	a.Hashes = hashes(t, "hash")
	var files []string
	t.Strings("hash_file", &files, nil)
	if len(files) > maxHashFiles {
		t.Fail("hash_file", "%d files: %d are possible", len(files), maxHashFiles)
		return a
	}
	for _, file := range files {
		text, err := readList(file)
		if err == nil {
			if err = a.Hashes.ParseHashes(string(text)); err != nil {
				err = fmt.Errorf("%s: %w", file, err)
			}
		}
		if err != nil {
			t.Fail("hash_file", "%w", err)
		}
	}
	a.Paths = r.globs(t, "path", imageGlob)
	return a
}

// imageGlob reads a pattern for the files of images. The guest's kernel names them
// without a volume.
func imageGlob(s string) (verdict.Glob, error) {
	if !strings.HasPrefix(s, `\`) && !strings.HasPrefix(s, "**") || strings.HasPrefix(strings.ToLower(s), `\device\`) {
		return verdict.Glob{}, fmt.Errorf(`pattern %q: a guest's kernel names files without their volume; write \Windows\x.dll or **\x.dll`, s)
	}
	return verdict.NewPathGlob(s)
}

// globs reads a list of patterns.
func (r *reader) globs(t *tomlfile.Table, key string, read func(string) (verdict.Glob, error)) (out []verdict.Glob) {
	var texts []string
	t.Strings(key, &texts, func(s string) error {
		if r.patterns++; r.patterns == MaxPatterns+1 {
			return fmt.Errorf("more than %d patterns", MaxPatterns)
		} else if r.patterns > MaxPatterns {
			return nil // the error is noted already
		}
		g, err := read(s)
		if err == nil {
			out = append(out, g)
		}
		return err
	})
	nonEmpty(t, key)
	return out
}

// nonEmpty refuses an empty list: as a condition it could mean everything or nothing.
func nonEmpty(t *tomlfile.Table, key string) {
	if t.Empty(key) {
		t.Fail(key, "an empty list: leave it out")
	}
}

// hashes reads a list of SHA-256 sums.
func hashes(t *tomlfile.Table, key string) verdict.Hashes {
	out := make(verdict.Hashes)
	var texts []string
	t.Strings(key, &texts, func(s string) error {
		sum, err := verdict.ParseHash(s)
		if err == nil {
			out[sum] = struct{}{}
		}
		return err
	})
	nonEmpty(t, key)
	return out
}
