package scan

import (
	"context"
	"encoding/json"
	"fmt"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
)

// imageRecord is what came of an image in which no signature was found. It holds whatever
// the signatures are: the results of its sums are asked for anew.
type imageRecord struct {
	Sum      contentSum // of the rebuilt file
	Fidelity finding.Fidelity
	Complete bool
	Changes  []change      `json:",omitempty"`
	Memory   *memoryRecord `json:",omitempty"` // of pages that the file does not have
}

// memoryRecord is what came of a piece of memory in which no signature was found.
type memoryRecord struct {
	Sums       []contentSum `json:",omitempty"` // of what was scanned of it; none where it is nothing but zeros
	Start, End uint64
	Coverage   float64
	Missing    uint64 // bytes
	Dropped    bool   // more than is scanned
}

// recogniseImage tells whether an image is, byte for byte, one whose record is known and
// clean by the signatures of this scan, and if so notes the same as its scan would. What
// has a signature is rebuilt: its verdict and evidence rest on bytes that were seen now.
// whole says that all of its file was there.
func (w *imageScanner) recogniseImage(ctx context.Context, it *item, pl *place) (known, whole bool, err error) {
	if w.pager != nil && len(w.copier.wanted) > 0 {
		return false, false, nil // more of it is to be had than was seen
	}
	key, ok, err := w.copier.liveKey(ctx, pl)
	if err != nil || !ok {
		return false, false, err
	}
	var rec imageRecord
	if !recall(w.results, key, &rec) || !w.results.Clean(rec.Sum) {
		return false, false, nil
	}
	if rec.Memory != nil {
		for _, sum := range rec.Memory.Sums {
			if !w.results.Clean(sum) {
				return false, false, nil
			}
		}
	}
	found := w.finding(it, rec.Fidelity)
	found.SHA256 = fmt.Sprintf("%x", rec.Sum)
	if len(rec.Changes) > 0 && w.req.Content {
		return false, false, nil
	}
	w.mu.Lock()
	w.out.Images++
	w.out.Unchanged++
	if !rec.Complete && rec.Fidelity.Coverage >= w.req.MinCoverage {
		w.out.Partial++
	}
	w.mu.Unlock()
	w.checkCoverage(it, rec.Fidelity.Coverage)
	w.changed(ctx, it, rec.Changes, found, Content{})
	if rec.Memory != nil && len(rec.Memory.Sums) > 0 {
		w.checkRegionCoverage(it.process, memoryName(it.process, rec.Memory), rec.Memory)
	}
	return true, rec.Complete, nil
}

// recogniseRegion is recogniseImage for a piece of memory at base.
func (w *imageScanner) recogniseRegion(ctx context.Context, p *introspect.Process, base uint64, frames []introspect.Frame) (bool, error) {
	key, ok, err := w.copier.liveRegionKey(ctx, base, frames)
	if err != nil || !ok {
		return false, err
	}
	var rec memoryRecord
	if !recall(w.results, key, &rec) {
		return false, nil
	}
	for _, sum := range rec.Sums {
		if !w.results.Clean(sum) {
			return false, nil
		}
	}
	if len(rec.Sums) > 0 {
		w.checkRegionCoverage(p, memoryName(p, &rec), &rec)
	}
	return true, nil
}

func recall[T imageRecord | memoryRecord](r Results, key [32]byte, rec *T) bool {
	text, ok := r.Recall(key)
	return ok && json.Unmarshal(text, rec) == nil
}

func remember[T imageRecord | memoryRecord](r Results, key [32]byte, rec *T) {
	if text, err := json.Marshal(rec); err == nil {
		r.Remember(key, text)
	}
}
