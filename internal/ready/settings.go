package ready

import (
	"os"
	"strings"

	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/policy"
)

// Settings reads the settings and the policy that they name; file is as config.Load takes
// it. Where they cannot be used the defaults are returned, so that all else is looked at.
func (h *Host) Settings(file string) (config.Config, []Answer) {
	a := Answer{What: "settings"}
	c, err := config.Load(file)
	switch {
	case err != nil:
		if file == "" {
			file, _ = config.DefaultFile() // it was found, as it was read
		}
		a.Detail, a.Fix = oneLine(err), h.edit(file)
		c, _ = config.Default() // without a home directory: no directories to look at
	case c.File == "":
		a.OK, a.Detail = true, "none, all has its default"
	default:
		a.OK, a.Detail = true, c.File
	}
	p := Answer{What: "policy"}
	rules, err := policy.Load(c.Policy, c.PolicySet)
	switch {
	case err != nil:
		p.Detail, p.Fix = oneLine(err), h.edit(c.Policy)
	case len(rules.Warnings) > 0:
		p.Optional = true // as its rules say, only not all of them
		p.Detail, p.Fix = oneLine(rules.Warnings), "vmav policy check "+rules.File
	case rules.File == "" || len(rules.Rules) == 0:
		p.OK, p.Detail = true, "no rules: findings are reported"
	default:
		p.OK, p.Detail = true, rules.File
	}
	return c, []Answer{a, p}
}

// edit is the command that opens a file in an editor.
func (h *Host) edit(file string) string {
	if h.uid == 0 {
		return "editor " + file
	}
	if f, err := os.OpenFile(h.path(file), os.O_WRONLY, 0); err == nil {
		f.Close()
		return "editor " + file
	}
	return "sudoedit " + file
}

// oneLine is an error with all that is wrong in one line.
func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}
