package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/image"
)

// cachePages bounds the page cache of single reads: 16 MiB.
const cachePages = 4096

// target is what a command works on: one domain or one memory image.
type target struct {
	domain domain.Domain
	source *source.Cache
	host   *domain.Host // nil for an image
}

// openTarget opens the domain that the first operand names, or the image of -a. rest are
// the operands after it. The caller calls closeAll.
func openTarget(c *cli.Context, e *env) (t *target, rest []string, closeAll func(), err error) {
	args := c.Args().Slice()
	if file := c.Path("image"); file != "" {
		im, err := image.Open(file)
		if err != nil {
			return nil, nil, nil, err
		}
		t = &target{domain: domain.Domain{ID: -1, Name: im.Info().Name, State: scan.StateImage}, source: source.NewCache(im, cachePages)}
		return t, args, func() { t.source.Close() }, nil
	}
	if len(args) == 0 {
		return nil, nil, nil, fmt.Errorf("%s needs a domain, or a memory image with -a; vmav %s --help shows the usage", c.Command.Name, c.Command.Name)
	}
	h, err := connect(c, e)
	if err != nil {
		return nil, nil, nil, err
	}
	d, err := h.Find(args[0])
	if err != nil {
		h.Close()
		return nil, nil, nil, err
	}
	t, err = openDomain(c.Context, h, d)
	if err != nil {
		h.Close()
		return nil, nil, nil, err
	}
	return t, args[1:], func() { t.source.Close(); h.Close() }, nil
}

func openDomain(ctx context.Context, h *domain.Host, d domain.Domain) (*target, error) {
	src, err := h.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	return &target{domain: d, source: source.NewCache(src, cachePages), host: h}, nil
}

// guest finds the Windows in the target. It uses the profiles that the command's flags
// choose.
func (t *target) guest(c *cli.Context, e *env) (*introspect.Guest, error) {
	profiles, err := newFinder(c, e)
	if err != nil {
		return nil, err
	}
	g, err := introspect.Open(c.Context, t.source, profiles)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.describe(), err)
	}
	e.noteInferred(t.describe(), g.Kernel())
	return g, nil
}

// describe names the target, with its state if that explains what is seen.
func (t *target) describe() string {
	if t.domain.State == scan.StateImage {
		return "memory image " + t.domain.Name
	}
	if t.domain.Paused {
		return fmt.Sprintf("domain %s (paused)", t.domain.Name)
	}
	return "domain " + t.domain.Name
}

// scanned returns the target in the form in which a scan takes it.
func (t *target) scanned() scan.Target {
	out := scan.Target{Name: t.domain.Name, UUID: t.domain.UUID, State: t.domain.State, Source: t.source}
	if t.host != nil {
		out.Domain = t
	}
	return out
}

// Paused implements scan.Domain.
func (t *target) Paused() bool {
	now, err := t.host.Find(t.domain.UUID)
	return err == nil && now.Paused
}

// Suspend implements respond.Suspender.
func (t *target) Suspend(ctx context.Context) error { return t.host.Suspend(ctx, t.domain) }

// warnings writes what could not be read. It returns errIncomplete if there was anything.
func (e *env) warnings(problems []introspect.Problem) error {
	for _, p := range problems {
		e.warn("%v", p)
	}
	if len(problems) > 0 {
		return errIncomplete
	}
	return nil
}

// standing leaves out the problems of processes that have ended meanwhile.
func (v *view) standing(problems []introspect.Problem) []introspect.Problem {
	if len(problems) == 0 {
		return nil
	}
	now := v.guest.WithSource(source.Uncached(v.source))
	return slices.DeleteFunc(problems, func(p introspect.Problem) bool {
		return p.Process != introspect.Identity{} && now.Ended(p.Process)
	})
}

// view is a target whose Windows was found, with the format and the remaining operands of
// the command that looks at it.
type view struct {
	*target
	guest  *introspect.Guest
	format report.Format
	rest   []string
}

// look opens the target of a listing command, runs the command and closes the target.
func look(c *cli.Context, e *env, do func(v *view) error) error {
	f, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	t, rest, done, err := openTarget(c, e)
	if err != nil {
		return err
	}
	defer done()
	g, err := t.guest(c, e)
	if err != nil {
		return err
	}
	return do(&view{t, g, f, rest})
}
