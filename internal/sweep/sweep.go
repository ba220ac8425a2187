package sweep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/pagein"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
)

// Target is the guest to sweep.
type Target struct {
	Name, UUID string
	State      string // of the domain: "running", "paused"; StateImage for a file
	Source     source.Source
	Paused     func() bool                 // whether the domain is paused now; nil where that is not known
	Suspend    func(context.Context) error // pauses the domain; nil where nobody can
}

// StateImage is the state of a memory image.
const StateImage = "image"

// Options say how.
type Options struct {
	PIDs        []uint64 // only these; nil for all processes and the drivers
	Jobs        int      // workers; 0 for two
	Policy      verdict.Policy
	Kill        kill.Options     // for the policy's kills and holds; its own policy is Policy
	Keep        func(*kill.Held) // takes over what is held, and releases it; nil where nobody can
	MinCoverage float64          // share of a file's bytes below which its scan counts as incomplete
	Sink        Sink             // nil for none
	Exhibits    bool             // every finding has an exhibit, not only those whose verdict asks for evidence
	// PageIn has the guest read in what is in no memory of the images that are mapped;
	// PageInOptions bound that.
	PageIn        bool
	PageInOptions pagein.Options
	Progress      func(Progress)
	// Found takes findings over as they come, before anything is decided about them, for a
	// Judge. The exhibit is the sweep's. nil for the sweep to decide and act itself.
	Found func(ctx context.Context, p *introspect.Process, f finding.Finding, x Exhibit)
	// Open is the guest, where its kernel was found before; nil to look for it. What it
	// returns reads through the Target's source.
	Open  func(context.Context) (*introspect.Guest, error)
	Focus []Focused // these processes, and what is new in them; nil for everything
	// Seen is told of each image of a process that was looked at, and whether all of its
	// file was in memory and the engine read it; nil for nobody. It is called concurrently.
	Seen  func(p introspect.Identity, image ImageKey, whole bool)
	Pace  func(context.Context) error // called before each image, to hold the sweep back; nil for never
	Kills sync.Locker                 // held while processes are killed; nil for none
}

// Progress is how far a sweep is.
type Progress struct {
	Domain   string
	Done     int // images
	Total    int
	Findings int
}

// DefaultMinCoverage is the coverage that a scan should have: Windows trims the
// pages that programs do not use, so that no running system has all of its images in
// memory, but of a file that is mostly missing nothing can be said.
const DefaultMinCoverage = 0.5

// Scanner is what a sweep needs of an engine.
type Scanner interface {
	Scan(ctx context.Context, name string, data []byte) (clam.Result, error)
}

// sweep is one run over one guest.
type sweep struct {
	target Target
	opt    Options
	engine Scanner
	guest  *introspect.Guest

	session  Session
	procs    []introspect.Process
	mappings *Mappings
	files    *Files
	pager    *pagein.Pager // nil where the guest is not asked for pages
	listed   time.Time     // when the enumeration began

	mu       sync.Mutex
	out      finding.Scan
	troubles []trouble
	waits    int // moments that were waited for
	// doomed are the processes to kill or to hold, with the findings that say so, by
	// EPROCESS; suspends the findings that say to suspend the domain.
	doomed   map[uint64]*doomed
	suspends []int

	rebuildTime, scanTime atomic.Int64 // nanoseconds, over all workers
	progress              Progress
}

// Domain sweeps one guest. The result always says what became of it; the error is
// that of an interruption or of an engine that is gone, with what was found until
// then in the result. memory carries results from sweep to sweep.
func Domain(ctx context.Context, t Target, profiles winstruct.Finder, engine Scanner, memory Memory, opt Options) (finding.Scan, error) {
	if opt.Jobs <= 0 {
		opt.Jobs = 2
	}
	opt.Sink = sinkOf(opt.Sink)
	begin := time.Now()
	s := &sweep{target: t, opt: opt, engine: engine, session: memory.Session(ctx, engine), out: Empty(t), mappings: NewMappings(), files: NewFiles()}
	err := s.run(ctx, profiles)
	s.out.Timing.Rebuild = time.Duration(s.rebuildTime.Load()).Seconds()
	s.out.Timing.Scan = time.Duration(s.scanTime.Load()).Seconds()
	s.out.Timing.Total = time.Since(begin).Seconds()
	return s.out, err
}

// Empty is the result of a target that was not swept yet.
func Empty(t Target) finding.Scan {
	d := finding.Scan{Name: t.Name, UUID: t.UUID, State: t.State, Status: finding.StatusFailed,
		Findings: []finding.Finding{}, Errors: []finding.Unread{}}
	if t.Source != nil {
		d.Source = t.Source.Info().Kind
	}
	return d
}

func (s *sweep) run(ctx context.Context, profiles winstruct.Finder) error {
	begin := time.Now()
	g, err := s.open(ctx, profiles)
	s.out.Timing.Locate = time.Since(begin).Seconds()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		Refuse(&s.out, err)
		return nil
	}
	s.guest = g
	k := g.Kernel()
	s.out.Build, s.out.Profile = k.Version, k.Identity.Key()
	if k.Inferred != "" {
		s.out.Profile, s.out.InferredFrom, s.out.Unproven = finding.ProfileInferred, k.Inferred, k.Unproven
		s.out.Missing = k.Identity.String()
	}

	begin = time.Now()
	s.listed = begin
	jobs, err := s.enumerate(ctx)
	s.out.Timing.Enumerate = time.Since(begin).Seconds()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.settle()
		s.out.Reason = err.Error()
		return nil
	}
	s.out.Status = finding.StatusScanned
	if s.opt.PageIn {
		if s.pager, err = OpenPager(g, s.target.Source, s.opt.PageInOptions); err != nil {
			s.fail("page in", err)
		} else {
			defer s.pager.Close()
		}
	}
	err = s.work(ctx, jobs)
	if s.pager != nil {
		s.out.PageIns = s.pager.Pages()
	}
	s.settle()
	if err == nil {
		s.act(ctx)
		err = ctx.Err()
	}
	SortFindings(s.out.Findings)
	if len(s.out.Errors) > 0 || err != nil {
		s.out.Status = finding.StatusIncomplete
	}
	g.Refresh() // its buffers are the next sweep's
	return err
}

func (s *sweep) open(ctx context.Context, profiles winstruct.Finder) (*introspect.Guest, error) {
	if s.opt.Open != nil {
		return s.opt.Open(ctx)
	}
	return introspect.Open(ctx, s.target.Source, profiles)
}

// Refuse notes why a guest was not swept. One that is not Windows is skipped; all
// else is a failure, because it may be a Windows that nobody looked at.
func Refuse(d *finding.Scan, err error) {
	d.Reason = err.Error()
	d.Status = finding.StatusFailed
	if errors.Is(err, introspect.ErrNotWindows) {
		d.Status = finding.StatusSkipped
	}
	var missing *winstruct.MissingError
	if errors.As(err, &missing) {
		d.Profile, d.Missing = finding.ProfileMissing, missing.Identity.String()
	}
}

// fail notes an error. The caller does not hold the lock.
func (s *sweep) fail(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Fail(what, err)
}

// job is one image to scan, or the rest of a process's executable memory.
type job struct {
	process *introspect.Process // nil for a driver
	module  introspect.Module
	regions bool // no module, but what is executable outside of images
	vads    []introspect.VAD
}

func (j *job) what() string {
	if j.process == nil {
		return fmt.Sprintf("driver %s", j.module.Name)
	}
	return fmt.Sprintf("process %d (%s), image %s", j.process.PID, j.process.Name, j.module.Name)
}

// file is the path of the image's file as the guest's kernel has it, which a process
// cannot change as it can the name in its loader's list. "" where it is not known.
func (j *job) file() string {
	if v := j.module.VAD(); v != nil {
		return v.Path
	}
	if j.process == nil {
		return j.module.Path // the kernel's own list
	}
	return ""
}

// enumerate lists every image of the guest, or those that the sweep is focused on.
func (s *sweep) enumerate(ctx context.Context) ([]job, error) {
	if s.opt.Focus != nil {
		return s.focus(ctx)
	}
	procs, problems, err := s.processes(ctx)
	if err != nil {
		return nil, err
	}
	s.procs = procs
	wanted := func(pid uint64) bool { return len(s.opt.PIDs) == 0 || slices.Contains(s.opt.PIDs, pid) }
	if len(s.opt.PIDs) == 0 {
		s.note(problems)
	}
	found := make(map[uint64]bool)
	var jobs []job
	for i := range procs {
		p := &procs[i]
		list := s.ranges
		if !wanted(p.PID) {
			list = s.guest.ModulesAndVADs // its problems are nobody's
		}
		mods, vads, problems, err := list(ctx, p)
		if err != nil {
			return nil, err
		}
		s.mappings.Add(p, mods)
		if !wanted(p.PID) {
			continue
		}
		found[p.PID] = true
		s.out.Processes++
		s.note(problems)
		for _, m := range mods {
			if slices.Contains(m.Flags, introspect.FlagUnmapped) {
				continue // a loader entry that is not true: nothing is there
			}
			jobs = append(jobs, job{process: p, module: m})
		}
		if p.PEB != 0 && p.Exited.IsZero() {
			jobs = append(jobs, job{process: p, regions: true, vads: vads})
		}
	}
	for _, pid := range s.opt.PIDs {
		if !found[pid] {
			return nil, fmt.Errorf("no process %d in the guest", pid)
		}
	}
	if len(s.opt.PIDs) == 0 {
		drivers, problems, err := s.guest.Drivers(ctx)
		if err != nil {
			return nil, err
		}
		s.note(problems)
		kernel := s.guest.Kernel().Base
		for _, d := range drivers {
			if d.Base != kernel { // see docs/ARCHITECTURE.md: the kernel's own image
				jobs = append(jobs, job{module: d})
			}
		}
	}
	return jobs, nil
}

// work runs the jobs on the workers.
func (s *sweep) work(ctx context.Context, jobs []job) error {
	s.progress = Progress{Domain: s.target.Name}
	for i := range jobs {
		if !jobs[i].regions {
			s.progress.Total++
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan job)
	var wg sync.WaitGroup
	for range s.opt.Jobs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w := worker{sweep: s, copier: NewCopier(s.guest, s.mappings, s.files)}
			w.copier.PageIn(s.pager)
			w.copier.digester = newDigester(s.guest, s.session)
			for j := range queue {
				if j.regions {
					if err := w.regions(ctx, &j); err != nil {
						cancel(err)
					}
					continue
				}
				if err := s.pace(ctx); err != nil {
					cancel(err)
				} else if err := w.image(ctx, &j); err != nil {
					cancel(err)
				}
				s.step()
			}
		}()
	}
feed:
	for _, j := range jobs {
		select {
		case queue <- j:
		case <-ctx.Done():
			break feed
		}
	}
	close(queue)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return nil
}

func (s *sweep) step() {
	s.mu.Lock()
	s.progress.Done++
	s.progress.Findings = len(s.out.Findings)
	p := s.progress
	s.mu.Unlock()
	if s.opt.Progress != nil {
		s.opt.Progress(p)
	}
}
