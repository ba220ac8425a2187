package sweep

import (
	"context"
	"crypto/sha256"
	"fmt"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/report"
)

// changes notes where an image in memory is not what its file is, one finding for each
// way in which that is so.
func (w *worker) changes(ctx context.Context, j *job, img *pe.Image, file *pe.File, f report.Finding) {
	type change struct {
		places int
		bytes  uint64
		first  pe.Conflict
	}
	seen := make(map[string]*change)
	for _, c := range file.Fidelity.Conflicts {
		sig := ""
		switch {
		case c.Section == "" && !c.Code && c.Source == pe.Prototype.String():
			sig = report.ModifiedHeaders
		case c.Code && c.Source == pe.Prototype.String():
			sig = report.ModifiedCode
		case c.Code:
			sig = report.ModifiedFile
		default:
			continue // data that a loader or a program may change as it likes
		}
		s := seen[sig]
		if s == nil {
			s = &change{first: c}
			seen[sig] = s
		}
		s.places++
		s.bytes += c.Len()
	}
	for sig, s := range seen {
		f := f
		f.Kind, f.Signature = report.KindModified, sig
		f.Region = &report.Region{Type: report.RegionImage, Image: f.Image, Start: f.Base + report.Address(s.first.RVA), End: f.Base + report.Address(s.first.RVA+s.first.Len())}
		f.Detail = fmt.Sprintf("%d bytes in %d places, the first at %s: %s for %s", s.bytes, s.places, f.Region.Start, s.first.Memory, s.first.File)
		w.found(ctx, j.process, f, Exhibit{file.Data, img.Mem, file.Fidelity})
	}
}

// hashes names a rebuilt file in the ways that others know files by.
func hashes(file *pe.File, opt pe.Options) *report.Hashes {
	h := pe.Hash(file)
	out := &report.Hashes{ImportHash: h.ImportHash, Authenticode: h.Authenticode}
	for _, s := range h.Sections {
		out.Sections = append(out.Sections, report.SectionHash{Name: s.Name, Size: s.Size, MD5: s.MD5})
	}
	out.Cached = CachedHash(opt)
	return out
}

// CachedHash is the SHA-256 of the file itself, in hexadecimal, where the guest's cache
// holds all of it; else "".
func CachedHash(opt pe.Options) string {
	if len(opt.FilePages) != 1 || opt.FilePages[0].Offset != 0 || uint64(len(opt.FilePages[0].Data)) != opt.FileSize {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256(opt.FilePages[0].Data))
}
