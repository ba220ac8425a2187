package scan

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"time"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/subject"
	"vmav.dev/vmav/internal/verdict"
)

// imageScanner scans one image after the other with its own buffers. It is for one
// goroutine.
type imageScanner struct {
	*run
	rebuilder pe.Rebuilder
	copier    *Copier
}

// image copies, rebuilds and scans one image. An error ends the scan: the guest or the
// engine is gone, or the user interrupted.
func (w *imageScanner) image(ctx context.Context, it *item) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	begin := time.Now()
	whole := false
	defer func() {
		if err == nil { // otherwise the scan ends, and nothing is known of the image
			w.lookedAt(it, whole)
		}
	}()
	pl, err := w.copier.find(ctx, it.process, &it.module)
	if err != nil {
		w.rebuildTime.Add(int64(time.Since(begin)))
		return w.unreadIn(ctx, it.process, it.what(), err)
	}
	w.copier.substitute(ctx, pl)
	var known bool
	known, whole, err = w.recogniseImage(ctx, it, pl)
	if err != nil || known {
		w.rebuildTime.Add(int64(time.Since(begin)))
		if err != nil {
			return w.unreadIn(ctx, it.process, it.what(), err)
		}
		return nil
	}
	img, opt, err := w.copier.read(ctx, pl)
	if err != nil {
		w.rebuildTime.Add(int64(time.Since(begin)))
		return w.unreadIn(ctx, it.process, it.what(), err)
	}
	key, keyed := w.copier.copiedKey(pl, img)
	file, err := w.rebuilder.Rebuild(img, opt)
	keyed = keyed && !w.copier.resolved // the key does not cover what other modules export
	w.rebuildTime.Add(int64(time.Since(begin)))
	w.mu.Lock()
	w.out.Images++
	w.mu.Unlock()
	if err != nil {
		w.failIn(it.process, it.what(), fmt.Errorf("rebuild: %w", err))
		return nil
	}
	found := w.finding(it, fidelity(file.Fidelity))
	res, sum, fresh, err := w.scan(ctx, it.what(), file.Data)
	if err != nil {
		return ifScanEnds(ctx, err)
	}
	found.SHA256 = fmt.Sprintf("%x", sum)
	w.count(file, fresh)
	all := changes(it.module.Base, file)
	if res.Signature != "" || len(all) > 0 {
		w.copier.restore(ctx, pl, img) // the exhibit has the process's own pages
	}
	content := Content{file.Data, img.Mem, file.Fidelity}
	switch {
	case res.Skipped != "":
	case res.Signature != "":
		found.Signature = res.Signature
		found.Hashes = hashes(file, opt)
		w.found(ctx, it.process, found, content)
	default:
		w.checkCoverage(it, found.Fidelity.Coverage)
	}
	rec := imageRecord{Sum: sum, Fidelity: found.Fidelity, Complete: file.Fidelity.Complete(), Changes: all}
	w.changed(ctx, it, all, found, content)
	whole = res.Skipped == "" && file.Fidelity.Complete()
	if len(file.Fidelity.MemoryOnly) > 0 {
		rec.Memory, err = w.memory(ctx, memoryForm{process: it.process, image: img, only: file.Fidelity.MemoryOnly,
			region: finding.Region{Type: finding.RegionImage, Image: found.Image}, path: found.File})
		keyed = keyed && rec.Memory != nil
	}
	if keyed && err == nil && res == (answer.Result{}) {
		remember(w.results, key, &rec)
	}
	return err
}

// finding returns what all findings in an image have in common.
func (w *imageScanner) finding(it *item, f finding.Fidelity) finding.Finding {
	found := finding.Finding{Kind: finding.KindSignature, Image: it.module.Path, File: it.file(), Base: finding.Address(it.module.Base), Size: it.module.Size,
		Fidelity: f}
	if found.Image == "" {
		found.Image = it.module.Name
	}
	return found
}

// checkCoverage notes an error if too little of an image without a signature was seen.
func (w *imageScanner) checkCoverage(it *item, coverage float64) {
	if coverage < w.req.MinCoverage {
		w.failIn(it.process, it.what(), fmt.Errorf("%.0f %% of it is in memory, too little to call it clean", 100*coverage))
	}
}

// unreadIn notes that something of a process could not be read, or of the kernel if p is
// nil. It returns an error if the guest is gone or the user interrupted.
func (w *imageScanner) unreadIn(ctx context.Context, p *introspect.Process, what string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	w.failIn(p, what, err)
	if errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) {
		return err
	}
	return nil
}

// scan lets the engine look at data, or recalls what the engine said of the same data
// before. If the engine did not read it in full, scan notes that as an error.
func (w *imageScanner) scan(ctx context.Context, what string, data []byte) (res answer.Result, sum contentSum, fresh bool, err error) {
	begin := time.Now()
	sum = sha256.Sum256(data)
	res, fresh, err = w.results.Result(ctx, sum, func() (answer.Result, error) { return w.Engine.Scan(ctx, what, data) })
	w.scanTime.Add(int64(time.Since(begin)))
	if err != nil && ctx.Err() == nil {
		w.unread(what, err)
	}
	if err == nil && res.Skipped != "" {
		w.unread(what, errors.New("not scanned in full: "+res.Skipped))
	}
	return res, sum, fresh, err
}

// ifScanEnds returns err if it ends the whole scan, and else nil.
func ifScanEnds(ctx context.Context, err error) error {
	if errors.Is(err, answer.ErrEngineGone) || errors.Is(err, os.ErrClosed) || ctx.Err() != nil {
		return err
	}
	return nil
}

// count adds a rebuilt file to the totals.
func (w *imageScanner) count(file *pe.File, fresh bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if fresh {
		w.out.Files++
		w.out.Bytes += uint64(len(file.Data))
	}
	if !file.Fidelity.Complete() && file.Fidelity.Coverage() >= w.req.MinCoverage {
		w.out.Partial++
	}
}

// found reports a finding in a process, or in the kernel if p is nil.
func (w *imageScanner) found(ctx context.Context, p *introspect.Process, f finding.Finding, c Content) {
	f.Subject = w.subject(p)
	f.Domain, f.PID, f.Process = w.target.Name, f.Subject.PID, f.Subject.Name
	w.on.Found(ctx, Found{Finding: f, Process: p, Content: c})
}

// subject returns a process as the policy sees it, or the kernel if p is nil.
func (r *run) subject(p *introspect.Process) verdict.Subject {
	out := verdict.Subject{Kernel: true, Session: -1}
	if p != nil {
		out = subject.Of(p)
		if parent := subject.Parent(p, r.procs); parent != nil {
			out.Parent, out.ParentPath = parent.Name, parent.Path
		}
	}
	out.Domain, out.Inferred = r.target.Name, r.out.InferredFrom != ""
	return out
}

func fidelity(f *pe.Fidelity) finding.Fidelity {
	return finding.Fidelity{Form: finding.FormFile, Coverage: f.Coverage(), Exact: f.Exact(), Base: string(f.Base.Method), Missing: f.Bytes.Missing,
		PagedIn: f.Bytes.PagedIn}
}
