package sweep

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"
	"time"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
)

// worker scans one image after the other in buffers of its own.
type worker struct {
	*sweep
	rebuilder pe.Rebuilder
	copy      Copy
}

// Copy is an image copied out of a guest, in buffers that the next copy reuses.
type Copy struct {
	mem     []byte
	origins []introspect.PageOrigin
	pages   []pe.Origin
}

// origins are the words of pe for where a page was found.
var origins = map[introspect.PageOrigin]pe.Origin{
	introspect.PageAbsent: pe.Absent, introspect.PageResident: pe.Resident, introspect.PageTransition: pe.Transition,
	introspect.PagePrototype: pe.Prototype, introspect.PageDemandZero: pe.DemandZero,
}

// Read copies a module of a process, or a driver where p is nil. The image is valid
// until the next Read.
func (c *Copy) Read(ctx context.Context, g *introspect.Guest, p *introspect.Process, m *introspect.Module) (*pe.Image, error) {
	size := m.Size
	if v := m.VAD(); v != nil {
		size = v.End + 1 - v.Start
	}
	size = (size + pe.PageSize - 1) &^ (pe.PageSize - 1)
	if size == 0 || size > maxImage {
		return nil, fmt.Errorf("its size of %d bytes is out of bounds", size)
	}
	if m.Base%pe.PageSize != 0 {
		return nil, fmt.Errorf("its base %#x is no page boundary", m.Base)
	}
	if uint64(cap(c.mem)) < size {
		c.mem = make([]byte, size)
		c.origins = make([]introspect.PageOrigin, size/pe.PageSize)
		c.pages = make([]pe.Origin, size/pe.PageSize)
	}
	mem, from, pages := c.mem[:size], c.origins[:size/pe.PageSize], c.pages[:size/pe.PageSize]
	var err error
	if p == nil {
		err = g.ReadDriver(ctx, m.Base, mem, from)
	} else {
		err = g.ReadImage(ctx, p, m.VAD(), m.Base, mem, from)
	}
	if err != nil {
		return nil, err
	}
	for i, o := range from {
		pages[i] = origins[o]
	}
	return &pe.Image{Name: m.Name, Base: m.Base, Mem: mem, Pages: pages}, nil
}

// image copies, rebuilds and scans one image. An error ends the sweep: the guest or
// the engine is gone, or the user interrupted.
func (w *worker) image(ctx context.Context, j *job) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	begin := time.Now()
	img, err := w.copy.Read(ctx, w.guest, j.process, &j.module)
	if err != nil {
		w.rebuildTime.Add(int64(time.Since(begin)))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) {
			w.fail(j.what(), err)
			return err
		}
		w.fail(j.what(), err)
		return nil
	}
	file, err := w.rebuilder.Rebuild(img, pe.Options{PreferredBase: j.module.OriginalBase})
	w.rebuildTime.Add(int64(time.Since(begin)))
	w.mu.Lock()
	w.out.Images++
	w.mu.Unlock()
	if err != nil {
		w.fail(j.what(), fmt.Errorf("rebuild: %w", err))
		return nil
	}
	sum := sha256.Sum256(file.Data)
	begin = time.Now()
	res, fresh, err := w.cache.scan(ctx, sum, func() (clam.Result, error) { return w.engine.Scan(ctx, j.what(), file.Data) })
	w.scanTime.Add(int64(time.Since(begin)))
	if err != nil {
		if ctx.Err() == nil {
			w.fail(j.what(), err)
		}
		if errors.Is(err, clam.ErrEngineGone) || errors.Is(err, os.ErrClosed) || ctx.Err() != nil {
			return err
		}
		return nil
	}
	w.judge(j, file, sum, res, fresh)
	return nil
}

// judge notes what the engine said of an image.
func (w *worker) judge(j *job, file *pe.File, sum [32]byte, res clam.Result, fresh bool) {
	f := file.Fidelity
	coverage := f.Coverage()
	w.mu.Lock()
	if fresh {
		w.out.Files++
		w.out.Bytes += uint64(len(file.Data))
	}
	if !f.Complete() && coverage >= w.opt.MinCoverage {
		w.out.Partial++
	}
	w.mu.Unlock()
	if res.Skipped != "" {
		w.fail(j.what(), errors.New("not scanned in full: "+res.Skipped))
		return
	}
	if res.Signature == "" {
		if coverage < w.opt.MinCoverage {
			w.fail(j.what(), fmt.Errorf("%.0f %% of it is in memory, too little to call it clean", 100*coverage))
		}
		return
	}
	subject := verdict.Subject{Kernel: j.process == nil}
	if p := j.process; p != nil {
		subject = Subject(p)
	}
	v := verdict.Decide(w.opt.Policy, subject)
	finding := report.Finding{Domain: w.target.Name, PID: subject.PID, Process: subject.Name, Image: j.module.Path, Base: report.Address(j.module.Base),
		Size: j.module.Size, Signature: res.Signature, SHA256: fmt.Sprintf("%x", sum), Verdict: v, Action: verdict.Report, Outcome: "reported",
		Fidelity: report.Fidelity{Coverage: coverage, Exact: f.Exact(), Base: string(f.Base.Method), Missing: f.Bytes.Missing}}
	if finding.Image == "" {
		finding.Image = j.module.Name
	}
	w.mu.Lock()
	w.out.Findings = append(w.out.Findings, finding)
	w.mu.Unlock()
}

// Subject is a process as verdicts see it.
func Subject(p *introspect.Process) verdict.Subject {
	s := verdict.Subject{PID: p.PID, Name: p.Name, Path: p.Path}
	for _, f := range p.Flags {
		switch f {
		case introspect.FlagCritical:
			s.Critical = true
		case introspect.FlagExited:
			s.Exited = true
		case introspect.FlagHidden:
			s.Hidden = true
		case introspect.FlagInferred:
			s.Inferred = true
		}
	}
	return s
}

func sortFindings(f []report.Finding) {
	sort.Slice(f, func(i, j int) bool {
		if f[i].PID != f[j].PID {
			return f[i].PID < f[j].PID
		}
		return f[i].Base < f[j].Base
	})
}

// Cache remembers what the engine said of a file, by the SHA-256 of its content, so
// that one DLL in a hundred processes and domains is scanned once. It is good for one
// run with one engine, and safe for concurrent use.
type Cache struct {
	mu      sync.Mutex
	results map[[32]byte]*entry
}

type entry struct {
	done chan struct{}
	res  clam.Result
	err  error
}

// NewCache returns an empty cache.
func NewCache() *Cache { return &Cache{results: make(map[[32]byte]*entry)} }

// scan returns what the engine said of the content with this sum. Of several callers
// at once one has it scanned and the others wait; an error is not remembered.
func (c *Cache) scan(ctx context.Context, sum [32]byte, do func() (clam.Result, error)) (res clam.Result, fresh bool, err error) {
	c.mu.Lock()
	e := c.results[sum]
	if e == nil {
		e = &entry{done: make(chan struct{})}
		c.results[sum] = e
		c.mu.Unlock()
		e.res, e.err = do()
		if e.err != nil {
			c.mu.Lock()
			delete(c.results, sum)
			c.mu.Unlock()
		}
		close(e.done)
		return e.res, true, e.err
	}
	c.mu.Unlock()
	select {
	case <-e.done:
		return e.res, false, e.err
	case <-ctx.Done():
		return clam.Result{}, false, ctx.Err()
	}
}
