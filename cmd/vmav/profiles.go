package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/symsrv"
)

// profileFlags returns the flags that say what to do about a Windows build that has no
// profile here.
func profileFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "fetch-profiles", Usage: "get the profile of an unknown Windows build from its symbol server"},
		symbolPathFlag(),
		&cli.BoolFlag{Name: "exact-profile", Usage: "refuse an unknown Windows build, and do not try the offsets of the nearest one"},
	}
}

func symbolPathFlag() cli.Flag {
	return &cli.StringFlag{Name: "symbol-path", EnvVars: []string{symsrv.PathVariable},
		Usage: "`PATH` of symbol files, as debuggers write it: srv*CACHE*URL, or directories; without it Microsoft's server"}
}

// finder finds the profiles for a command: in the store and, if asked to, at the symbol
// server. It also offers those of near builds (introspect.Neighbours).
type finder struct {
	*winstruct.Store
	e     *env
	ctx   context.Context
	fetch *symsrv.Client // nil for none

	mu    sync.Mutex
	asked map[winstruct.Identity]*winstruct.Profile // what was fetched; nil if that failed
}

// newFinder makes the finder that a command's flags describe. Without flags it is the
// store.
func newFinder(c *cli.Context, e *env) (winstruct.Finder, error) {
	f := &finder{Store: winstruct.OpenStore(), e: e, ctx: c.Context, asked: make(map[winstruct.Identity]*winstruct.Profile)}
	if c.Bool("fetch-profiles") {
		var err error
		if f.fetch, err = newFetcher(c, e); err != nil {
			return nil, err
		}
	}
	if c.Bool("exact-profile") {
		return exactFinder{f}, nil
	}
	return f, nil
}

// exactFinder is a finder without the near builds.
type exactFinder struct{ f *finder }

// Find implements winstruct.Finder.
func (x exactFinder) Find(id winstruct.Identity) (*winstruct.Profile, error) { return x.f.Find(id) }

// FindPacked returns a profile for a worker.
func (x exactFinder) FindPacked(id winstruct.Identity) ([]byte, error) { return x.f.FindPacked(id) }

func newFetcher(c *cli.Context, e *env) (*symsrv.Client, error) {
	return symsrv.New(symsrv.Options{Path: c.String("symbol-path"), AirGapped: symsrv.AirGapped(),
		Progress: func(text string) { e.warn("%s", text) }})
}

// Find implements winstruct.Finder. It asks for a build only once, because many guests can
// be of it.
func (f *finder) Find(id winstruct.Identity) (*winstruct.Profile, error) {
	p, err := f.Store.Find(id)
	var missing *winstruct.MissingError
	if f.fetch == nil || !errors.As(err, &missing) {
		return p, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p, again := f.asked[missing.Identity]
	if !again {
		p = f.get(missing.Identity)
		f.asked[missing.Identity] = p
	}
	if p == nil {
		return nil, err
	}
	return p, nil
}

// FindPacked finds a profile for a worker, which parses it itself. What is fetched is a
// PDB, so it is parsed here first.
func (f *finder) FindPacked(id winstruct.Identity) ([]byte, error) {
	packed, err := f.Store.FindPacked(id)
	var missing *winstruct.MissingError
	if f.fetch == nil || !errors.As(err, &missing) {
		return packed, err
	}
	p, err := f.Find(id)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = p.Save(&b)
	return b.Bytes(), err
}

// get fetches a profile and stores it if possible. It returns nil if there is none.
func (f *finder) get(id winstruct.Identity) *winstruct.Profile {
	p, err := fetchProfile(f.ctx, f.fetch, id)
	if err != nil {
		f.e.warn("%v", err)
		return nil
	}
	dir, err := winstruct.UserDir()
	var path string
	if err == nil {
		path, err = winstruct.Put(dir, p)
	}
	if err != nil {
		f.e.warn("%s: fetched and verified, but not stored: %v", id, err)
	} else {
		f.e.warn("%s: fetched, verified and stored as %s", id, path)
	}
	return p
}

// fetchProfile fetches and checks the profile of a build.
func fetchProfile(ctx context.Context, from *symsrv.Client, id winstruct.Identity) (*winstruct.Profile, error) {
	p, err := from.Profile(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := introspect.Usable(p); err != nil {
		return nil, fmt.Errorf("the symbol file of %s is of no use: %w", id, err)
	}
	return p, nil
}

// noteInferred tells the user that a guest is read without a profile of its own, or without
// something that even its own profile does not tell.
func (e *env) noteInferred(what string, k introspect.Kernel) {
	if k.Inferred == "" {
		if len(k.Unproven) > 0 {
			e.warn("%s: read without %v, which could not be proven", what, k.Unproven)
		}
		return
	}
	without := ""
	if len(k.Unproven) > 0 {
		without = fmt.Sprintf(", without %v, which could not be proven", k.Unproven)
	}
	e.warn("%s: no profile for %s: inferred from Windows %s%s; vmav profile fetch %s gets it", what, k.Identity, k.Inferred, without, k.Identity)
}

func profileFetchCommand(e *env) *cli.Command {
	return command(&cli.Command{Name: "fetch", Usage: "get the profile of a Windows build from its symbol server",
		ArgsUsage: "NAME.pdb ID | DOMAIN | -a FILE",
		Description: "Name the build as vmav names a missing one, or name a guest that runs it. The symbol file is\n" +
			"checked: it must say that it belongs to this very build. Servers are asked in the order of the\n" +
			"symbol path, through the proxies of the environment. If " + symsrv.AirGapVariable + " is set or\n" +
			symsrv.AirGapFile + " exists, only directories are searched.",
		Flags:        []cli.Flag{connectFlag(), imageFlag(), symbolPathFlag(), systemFlag()},
		Action:       func(c *cli.Context) error { return runProfileFetch(c, e) },
		BashComplete: completeDomains(e)})
}

func runProfileFetch(c *cli.Context, e *env) error {
	dir, err := storeDir(c)
	if err != nil {
		return err
	}
	from, err := newFetcher(c, e)
	if err != nil {
		return err
	}
	id, err := wantedBuild(c, e)
	if err != nil {
		return err
	}
	p, err := fetchProfile(c.Context, from, id)
	if err != nil {
		return err
	}
	path, err := winstruct.Put(dir, p)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s: verified, stored as %s\n", id, escape.Text(path))
	return nil
}

// wantedBuild returns the build that the operands name: by PDB and id, or by a guest.
func wantedBuild(c *cli.Context, e *env) (winstruct.Identity, error) {
	if args := c.Args().Slice(); c.Path("image") == "" && len(args) == 2 {
		return winstruct.ParseIdentity(args[0], args[1])
	}
	t, rest, done, err := openTarget(c, e)
	if err != nil {
		return winstruct.Identity{}, err
	}
	defer done()
	if len(rest) > 0 {
		return winstruct.Identity{}, errors.New("fetch takes one guest, or the name of a PDB and its id")
	}
	id, err := introspect.Identify(c.Context, t.source)
	if err != nil {
		return winstruct.Identity{}, fmt.Errorf("%s: %w", t.describe(), err)
	}
	return id, nil
}
