package ready

import (
	"os"
	"strings"

	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/policy"
)

// Settings reads the settings, and the policy that they name. file is the path for
// config.Load. If the settings cannot be used, the defaults are returned, so that
// everything else can be checked.
func (h *Inspector) Settings(file string) (config.Config, []Answer) {
	a := Answer{What: "settings"}
	c, err := config.Load(file)
	switch {
	case err != nil:
		if file == "" {
			file, _ = config.DefaultFile() // no error: it was found before
		}
		a.Detail, a.Fix = oneLine(err), h.edit(file)
		c, _ = config.Default() // no error matters: without a home directory there are no directories to look at
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
		p.Optional = true // the policy works, only some rules never decide
		p.Detail, p.Fix = oneLine(rules.Warnings), "vmav policy check "+rules.File
	case rules.File == "" || len(rules.Rules) == 0:
		p.OK, p.Detail = true, "no rules: findings are reported"
	default:
		p.OK, p.Detail = true, rules.File
	}
	return c, []Answer{a, p}
}

// edit returns the command that opens a file in an editor.
func (h *Inspector) edit(file string) string {
	if h.uid == 0 {
		return "editor " + file
	}
	if f, err := os.OpenFile(h.path(file), os.O_WRONLY, 0); err == nil {
		f.Close()
		return "editor " + file
	}
	return "sudoedit " + file
}

// oneLine returns an error's text in one line.
func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}
