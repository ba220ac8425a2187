package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/source/memhook"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/symsrv"
)

// checkRow is one answer of vmav check.
type checkRow struct {
	What   string `json:"what"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
	// Optional: scanning does without it, so that it does not make the host unready.
	Optional bool `json:"optional,omitempty"`
}

var checkColumns = []report.Column[checkRow]{
	{Title: "CHECK", Text: func(r checkRow) string { return r.What }},
	{Title: "STATE", Text: func(r checkRow) string {
		switch {
		case r.OK:
			return "ok"
		case r.Optional:
			return "absent"
		}
		return "MISSING"
	}},
	{Title: "DETAIL", Text: func(r checkRow) string {
		if r.Fix != "" {
			return r.Detail + "; " + r.Fix
		}
		return r.Detail
	}},
}

func checkCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:   "check",
		Usage:  "say whether this host is ready, and what is missing",
		Flags:  []cli.Flag{connectFlag(), sourceFlag(), formatFlag()},
		Action: func(c *cli.Context) error { return runCheck(c, e) },
	})
}

func runCheck(c *cli.Context, e *env) error {
	f, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	backend, err := e.backend(c)
	if err != nil {
		return err
	}
	uri, err := e.uri(c)
	if err != nil {
		return err
	}
	rows := []checkRow{checkLibvirt(c.Context, uri, backend), checkModule()}
	rows = append(rows, checkEngine(c.Context)...)
	rows = append(rows, checkProfiles(), checkSandbox(c.Context))
	if err := report.Rows(e.stdout, f, rows, checkColumns); err != nil {
		return err
	}
	for _, r := range rows {
		if !r.OK && !r.Optional {
			return errIncomplete
		}
	}
	return nil
}

// checkLibvirt looks for domains, and whether their QEMU processes can be read.
func checkLibvirt(ctx context.Context, uri string, backend domain.Backend) checkRow {
	r := checkRow{What: "libvirt"}
	h, err := domain.Connect(uri)
	if err != nil {
		r.Detail, r.Fix = err.Error(), "start libvirtd, or name another URI with -c"
		return r
	}
	defer h.Close()
	h.Use(backend, nil)
	doms, err := h.List(false)
	if err != nil {
		r.Detail = err.Error()
		return r
	}
	var refused []string
	kinds := make(map[string]int)
	for _, d := range doms {
		src, err := h.Open(ctx, d)
		if err != nil {
			refused = append(refused, err.Error())
			continue
		}
		kinds[src.Info().Kind]++
		src.Close()
	}
	r.OK = len(refused) == 0
	r.Detail = fmt.Sprintf("%s, %d running domains", h.URI(), len(doms))
	for _, kind := range []domain.Backend{domain.Memhook, domain.QEMU} {
		if n := kinds[string(kind)]; n > 0 {
			r.Detail += fmt.Sprintf(", %d through %s", n, kind)
		}
	}
	if !r.OK {
		r.Detail += ", not readable: " + strings.Join(refused, "; ")
		r.Fix = "run vmav as root or as the user of the QEMU processes"
	}
	return r
}

// checkModule asks the kernel module for its version. Without it everything but killing
// works.
func checkModule() checkRow {
	r := checkRow{What: "kvm-memhook", Optional: true}
	major, minor, err := memhook.Version()
	if err == nil {
		r.OK, r.Detail = true, fmt.Sprintf("interface %d.%d at %s", major, minor, memhook.Device)
		return r
	}
	r.Detail = err.Error()
	switch {
	case errors.Is(err, memhook.ErrAbsent):
		r.Detail = "the module is not loaded: domains are read through QEMU, and nothing can be killed"
		r.Fix = "build and load kernel/kvm-memhook (docs/MODULE.md)"
	case errors.Is(err, memhook.ErrDenied):
		r.Fix = "run vmav as root, or join the group of " + memhook.Device
	case errors.Is(err, memhook.ErrAPI):
		r.Fix = "load the module that came with this vmav"
	}
	return r
}

// oldDatabase is the age from which signatures are called old.
const oldDatabase = 7 * 24 * time.Hour

// checkEngine looks for a clamd that answers, else for what a private one needs, and
// for the age of the signatures.
func checkEngine(ctx context.Context) []checkRow {
	engine := checkRow{What: "clamd"}
	e, err := clam.Open(ctx, clam.Options{})
	if err != nil {
		engine.Detail, engine.Fix = err.Error(), "install clamav-daemon, and signatures with clamav-freshclam or --database"
		if _, lerr := exec.LookPath("/usr/sbin/clamd"); lerr == nil {
			engine.Fix = "get signatures with freshclam, or give scan some with --database"
		}
		return []checkRow{engine}
	}
	defer e.Close()
	info := e.Info()
	engine.OK, engine.Detail = true, info.Version+" at "+info.Socket
	if info.Private {
		engine.Detail = info.Version + ", a private one for each run: no clamd answers at " + clam.DefaultSocket
	}
	age := checkRow{What: "signatures"}
	if d, known := info.Age(time.Now()); known {
		age.OK = d < oldDatabase
		age.Detail = fmt.Sprintf("database %s, %d days old", info.Database, int(d.Hours()/24))
		if !age.OK {
			age.Fix = "run freshclam"
		}
	} else {
		age.OK, age.Detail = true, "of unknown age: no official database"
	}
	return []checkRow{engine, age}
}

func checkProfiles() checkRow {
	r := checkRow{What: "profiles", OK: true}
	n := 0
	for _, p := range winstruct.OpenStore().List() {
		if p.Err != nil {
			r.OK, r.Detail, r.Fix = false, p.Err.Error(), "remove or import it anew"
			return r
		}
		n++
	}
	r.Detail = fmt.Sprintf("%d Windows builds", n)
	if symsrv.AirGapped() {
		r.Detail += "; air-gapped, no symbol server is asked"
	}
	return r
}
