package scan

import (
	"context"
	"crypto/sha256"
	"fmt"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/pe"
)

// change is one way in which an image in memory differs from its file.
type change struct {
	Signature string
	First     pe.Range // addresses of the first difference
	Detail    string
}

// changes lists how an image at base differs from its file.
func changes(base uint64, file *pe.File) []change {
	type place struct {
		places int
		bytes  uint64
		first  pe.Conflict
	}
	seen := make(map[string]*place)
	var order []string
	for _, c := range file.Fidelity.Conflicts {
		sig := ""
		switch {
		case c.Section == "" && !c.Code && c.Source == pe.Prototype.String():
			sig = finding.ModifiedHeaders
		case c.Code && c.Source == pe.Prototype.String():
			sig = finding.ModifiedCode
		case c.Code:
			sig = finding.ModifiedFile
		default:
			continue // data, which a loader or a program may change
		}
		s := seen[sig]
		if s == nil {
			s = &place{first: c}
			seen[sig] = s
			order = append(order, sig)
		}
		s.places++
		s.bytes += c.Len()
	}
	var out []change
	for _, sig := range order {
		s := seen[sig]
		at := pe.Range{Start: base + s.first.RVA, End: base + s.first.RVA + s.first.Len()}
		out = append(out, change{sig, at, fmt.Sprintf("%d bytes in %d places, the first at %s: %s for %s", s.bytes, s.places,
			finding.Address(at.Start), s.first.Memory, s.first.File)})
	}
	return out
}

// changed reports changes of an image, with one finding for each. x may be empty if none of
// the changes asks for the content.
func (w *imageScanner) changed(ctx context.Context, it *item, all []change, f finding.Finding, x Content) {
	for _, c := range all {
		w.found(ctx, it.process, c.finding(f), x)
	}
}

// finding returns the finding of a change. f is what it has in common with other findings
// in the image.
func (c *change) finding(f finding.Finding) finding.Finding {
	f.Kind, f.Signature, f.Detail = finding.KindModified, c.Signature, c.Detail
	f.Region = &finding.Region{Type: finding.RegionImage, Image: f.Image, Start: finding.Address(c.First.Start), End: finding.Address(c.First.End)}
	return f
}

// hashes returns the hashes by which others know a rebuilt file.
func hashes(file *pe.File, opt pe.Options) *finding.Hashes {
	h := pe.Hash(file)
	out := &finding.Hashes{ImportHash: h.ImportHash, Authenticode: h.Authenticode}
	for _, s := range h.Sections {
		out.Sections = append(out.Sections, finding.SectionHash{Name: s.Name, Size: s.Size, MD5: s.MD5})
	}
	out.Cached = CachedHash(opt)
	return out
}

// CachedHash returns the SHA-256 of the file itself in hexadecimal, if the guest's cache
// holds all of it, and else "".
func CachedHash(opt pe.Options) string {
	if len(opt.FilePages) != 1 || opt.FilePages[0].Offset != 0 || uint64(len(opt.FilePages[0].Data)) != opt.FileSize {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256(opt.FilePages[0].Data))
}
