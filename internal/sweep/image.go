package sweep

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"sort"
	"time"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
)

// worker scans one image after the other in buffers of its own.
type worker struct {
	*sweep
	rebuilder pe.Rebuilder
	copier    *Copier
}

// image copies, rebuilds and scans one image. An error ends the sweep: the guest or
// the engine is gone, or the user interrupted.
func (w *worker) image(ctx context.Context, j *job) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	begin := time.Now()
	whole := false
	defer func() {
		if err == nil { // else the sweep ends, and nothing was said of the image
			w.lookedAt(j, whole)
		}
	}()
	pl, err := w.copier.find(ctx, j.process, &j.module)
	if err != nil {
		w.rebuildTime.Add(int64(time.Since(begin)))
		return w.unread(ctx, j.process, j.what(), err)
	}
	w.copier.settle(ctx, pl)
	var known bool
	known, whole, err = w.recogniseImage(ctx, j, pl)
	if err != nil || known {
		w.rebuildTime.Add(int64(time.Since(begin)))
		if err != nil {
			return w.unread(ctx, j.process, j.what(), err)
		}
		return nil
	}
	img, opt, err := w.copier.read(ctx, pl)
	if err != nil {
		w.rebuildTime.Add(int64(time.Since(begin)))
		return w.unread(ctx, j.process, j.what(), err)
	}
	key, keyed := w.copier.copied(pl, img)
	file, err := w.rebuilder.Rebuild(img, opt)
	keyed = keyed && !w.copier.resolved // what other modules export is not in the key
	w.rebuildTime.Add(int64(time.Since(begin)))
	w.mu.Lock()
	w.out.Images++
	w.mu.Unlock()
	if err != nil {
		w.failIn(j.process, j.what(), fmt.Errorf("rebuild: %w", err))
		return nil
	}
	found := w.finding(j, fidelity(file.Fidelity))
	res, sum, fresh, err := w.scan(ctx, j.what(), file.Data)
	if err != nil {
		return ended(ctx, err)
	}
	found.SHA256 = fmt.Sprintf("%x", sum)
	w.count(file, fresh)
	all := changes(j.module.Base, file)
	if res.Signature != "" || len(all) > 0 {
		w.copier.unsettle(ctx, pl, img) // the exhibit is what the process has
	}
	exhibit := Exhibit{file.Data, img.Mem, file.Fidelity}
	switch {
	case res.Skipped != "":
	case res.Signature != "":
		found.Signature = res.Signature
		found.Hashes = hashes(file, opt)
		w.found(ctx, j.process, found, exhibit)
	default:
		w.covered(j, found.Fidelity.Coverage)
	}
	rec := imageRecord{Sum: sum, Fidelity: found.Fidelity, Complete: file.Fidelity.Complete(), Changes: all}
	w.changed(ctx, j, all, found, exhibit)
	whole = res.Skipped == "" && file.Fidelity.Complete()
	if len(file.Fidelity.MemoryOnly) > 0 {
		rec.Memory, err = w.memory(ctx, j.process, img, file.Fidelity.MemoryOnly, finding.Region{Type: finding.RegionImage, Image: found.Image}, found.File)
		keyed = keyed && rec.Memory != nil
	}
	if keyed && err == nil && res == (clam.Result{}) {
		remember(w.session, key, &rec)
	}
	return err
}

// finding is what all findings in an image have in common.
func (w *worker) finding(j *job, f finding.Fidelity) finding.Finding {
	found := finding.Finding{Kind: finding.KindSignature, Image: j.module.Path, File: j.file(), Base: finding.Address(j.module.Base), Size: j.module.Size, Fidelity: f}
	if found.Image == "" {
		found.Image = j.module.Name
	}
	return found
}

// covered notes it where too little of an image without a signature was seen.
func (w *worker) covered(j *job, coverage float64) {
	if coverage < w.opt.MinCoverage {
		w.failIn(j.process, j.what(), fmt.Errorf("%.0f %% of it is in memory, too little to call it clean", 100*coverage))
	}
}

// unread notes that something of a process, nil for the kernel, could not be read. It returns an error where the guest
// is gone or the user interrupted.
func (w *worker) unread(ctx context.Context, p *introspect.Process, what string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	w.failIn(p, what, err)
	if errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) {
		return err
	}
	return nil
}

// scan has the engine look at data, or recalls what it said of the same before. What
// the engine did not read in full is noted as an error.
func (w *worker) scan(ctx context.Context, what string, data []byte) (res clam.Result, sum content, fresh bool, err error) {
	begin := time.Now()
	sum = sha256.Sum256(data)
	res, fresh, err = w.session.Result(ctx, sum, func() (clam.Result, error) { return w.engine.Scan(ctx, what, data) })
	w.scanTime.Add(int64(time.Since(begin)))
	if err != nil && ctx.Err() == nil {
		w.fail(what, err)
	}
	if err == nil && res.Skipped != "" {
		w.fail(what, errors.New("not scanned in full: "+res.Skipped))
	}
	return res, sum, fresh, err
}

// ended returns the error of a scan where it ends the sweep.
func ended(ctx context.Context, err error) error {
	if errors.Is(err, clam.ErrEngineGone) || errors.Is(err, os.ErrClosed) || ctx.Err() != nil {
		return err
	}
	return nil
}

// count adds a rebuilt file to the sums.
func (w *worker) count(file *pe.File, fresh bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if fresh {
		w.out.Files++
		w.out.Bytes += uint64(len(file.Data))
	}
	if !file.Fidelity.Complete() && file.Fidelity.Coverage() >= w.opt.MinCoverage {
		w.out.Partial++
	}
}

// found hands on a finding in a process, or in the kernel where p is nil.
func (w *worker) found(ctx context.Context, p *introspect.Process, f finding.Finding, x Exhibit) {
	f.Subject = w.subject(p)
	f.Domain, f.PID, f.Process = w.target.Name, f.Subject.PID, f.Subject.Name
	if w.opt.Found != nil {
		w.opt.Found(ctx, p, f, x)
		return
	}
	w.judge(ctx, p, f, x)
}

// judge decides on a finding, has it recorded and notes it.
func (s *sweep) judge(ctx context.Context, p *introspect.Process, f finding.Finding, x Exhibit) {
	f.Verdict = verdict.Decide(s.opt.Policy, f.Facts(), f.Subject)
	f.Action, f.Outcome = verdict.Report, finding.Outcome{Code: finding.OutcomeReported}
	// What was found is recorded also where the sweep was interrupted meanwhile.
	s.unrecorded(&f, s.opt.Sink.Found(context.WithoutCancel(ctx), &f, x))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doom(p, f.Verdict.Action, len(s.out.Findings))
	s.out.Findings = append(s.out.Findings, f)
}

// subject is a process as the policy sees it, or the kernel where p is nil.
func (s *sweep) subject(p *introspect.Process) verdict.Subject {
	out := verdict.Subject{Kernel: true, Session: -1}
	if p != nil {
		out = kill.Subject(p)
		if parent := Parent(p, s.procs); parent != nil {
			out.Parent, out.ParentPath = parent.Name, parent.Path
		}
	}
	out.Domain, out.Inferred = s.target.Name, s.out.InferredFrom != ""
	return out
}

// Parent is the process of some that made p, or nil where it is not known any more: its
// id may be another's by now, one that was made later.
func Parent(p *introspect.Process, procs []introspect.Process) (parent *introspect.Process) {
	for i := range procs {
		if q := &procs[i]; q.PID == p.PPID && q.PID != 0 && !q.Created.After(p.Created) && (parent == nil || q.Created.After(parent.Created)) {
			parent = q
		}
	}
	return parent
}

func fidelity(f *pe.Fidelity) finding.Fidelity {
	return finding.Fidelity{Form: finding.FormFile, Coverage: f.Coverage(), Exact: f.Exact(), Base: string(f.Base.Method), Missing: f.Bytes.Missing, PagedIn: f.Bytes.PagedIn}
}

// SortFindings orders findings by process, address and signature.
func SortFindings(f []finding.Finding) {
	sort.Slice(f, func(i, j int) bool {
		if f[i].PID != f[j].PID {
			return f[i].PID < f[j].PID
		}
		if f[i].Base != f[j].Base {
			return f[i].Base < f[j].Base
		}
		return f[i].Signature < f[j].Signature
	})
}
