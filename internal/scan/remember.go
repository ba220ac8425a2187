package scan

import (
	"context"
	"encoding/json"
	"fmt"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
)

// imageRecord is the result of an image in which no signature was found. It does not depend
// on the signatures: what the engine says of its sums is asked for again.
type imageRecord struct {
	Sum      contentSum // of the rebuilt file
	Fidelity finding.Fidelity
	Complete bool
	Changes  []change      `json:",omitempty"`
	Memory   *memoryRecord `json:",omitempty"` // of pages that the file does not have
}

// memoryRecord is the result of a piece of memory in which no signature was found.
type memoryRecord struct {
	Sums       []contentSum `json:",omitempty"` // of the contents that were scanned; none if it is all zeros
	Start, End uint64
	Coverage   float64
	Missing    uint64 // bytes
	Dropped    bool   // it was larger than what is scanned
}

// recogniseImage reports whether an image equals, byte for byte, one whose record is known
// and which is clean by the signatures of this scan. If so, it notes what a scan of it
// would note. An image with a signature is always rebuilt, because its verdict and its
// evidence must rest on bytes that were seen now. whole says that all of the file was in
// memory.
func (w *imageScanner) recogniseImage(ctx context.Context, it *item, pl *place) (known, whole bool, err error) {
	if w.pager != nil && len(w.copier.wanted) > 0 {
		return false, false, nil // paging in may get more of it than was seen
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

// recogniseRegion does for a piece of memory at base what recogniseImage does for an image.
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
