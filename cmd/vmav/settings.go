package main

import (
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/policy"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/verdict"
)

// configFlag names vmav.toml. Its environment variable is read at one level only, like that
// of sourceFlag.
func configFlag(env ...string) cli.Flag {
	return &cli.PathFlag{Name: "config", EnvVars: env,
		Usage: "settings `FILE`; without it /etc/vmav/vmav.toml, or for an ordinary user $XDG_CONFIG_HOME/vmav/vmav.toml, if it exists"}
}

// settings returns what vmav.toml says. It reads the file once.
func (e *env) settings(c *cli.Context) (*config.Config, error) {
	if e.config == nil {
		got, err := config.Load(text(c, "config"))
		if err != nil {
			return nil, err
		}
		e.config = &got
	}
	return e.config, nil
}

// uri returns the URI of the libvirt to connect to: that of the option, of the environment
// or of the settings, in this order.
func (e *env) uri(c *cli.Context) (string, error) {
	if uri := text(c, "connect"); uri != "" || os.Getenv("LIBVIRT_DEFAULT_URI") != "" {
		return uri, nil
	}
	s, err := e.settings(c)
	if err != nil {
		return "", err
	}
	return s.URI, nil
}

// backend returns how domains are read: as the option, the environment or the settings say,
// in this order.
func (e *env) backend(c *cli.Context) (domain.Backend, error) {
	for _, level := range c.Lineage() {
		if level.IsSet("source") {
			return domain.ParseBackend(level.String("source"))
		}
	}
	s, err := e.settings(c)
	if err != nil {
		return "", err
	}
	return domain.ParseBackend(s.Source)
}

// policyFlags returns the flags that say what is done about findings.
func policyFlags() []cli.Flag {
	return []cli.Flag{
		&cli.PathFlag{Name: "policy",
			Usage: "policy `FILE`, which says what is done about findings; without it and --action the policy that the settings name"},
		&cli.StringFlag{Name: "action", Usage: "what is done about every signature that is found, in place of a policy: `report`, kill, hold or suspend"},
	}
}

// verdicts returns the policy and the kill options of a command with policyFlags and
// killFlags.
func (e *env) verdicts(c *cli.Context) (policy.Policy, kill.Options, error) {
	p, err := e.policy(c)
	if err != nil {
		return p, kill.Options{}, err
	}
	how, err := parseKill(c, p)
	if err != nil {
		return p, how, err
	}
	p.Surrogates, p.DryRun = how.Policy.Surrogates, how.DryRun
	return p, how, nil
}

func holdFlag() cli.Flag {
	return &cli.DurationFlag{Name: "hold-for", Usage: "hold processes for this `TIME` and only then end; without it nothing is held"}
}

// maxHold bounds --hold-for.
const maxHold = 24 * time.Hour

// parseHolds reads --hold-for. It returns nil if it was not given.
func parseHolds(c *cli.Context) (*respond.Holds, error) {
	if !c.IsSet("hold-for") {
		return nil, nil
	}
	d := c.Duration("hold-for")
	if d < time.Second || d > maxHold {
		return nil, fmt.Errorf("hold for %v: 1s to %v are possible", d, maxHold)
	}
	return respond.NewHolds(d), nil
}

// policy returns the policy of a command with policyFlags: that of --action, of --policy,
// or of the settings.
func (e *env) policy(c *cli.Context) (policy.Policy, error) {
	s, err := e.settings(c)
	if err != nil {
		return policy.Policy{}, err
	}
	var p policy.Policy
	switch file := c.Path("policy"); {
	case c.IsSet("action") && file != "":
		return p, errBoth
	case c.IsSet("action"):
		a, err := verdict.ParseAction(c.String("action"))
		if err != nil {
			return p, err
		}
		p = policy.Default()
		p.Rules = verdict.Always(a).Rules
	case file != "":
		p, err = policy.Load(file, true)
	default:
		p, err = policy.Load(s.Policy, s.PolicySet)
	}
	p.DryRun = p.DryRun || s.DryRun
	return p, err
}
