package scan

import (
	"context"
	"crypto/sha256"
	"fmt"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/pe"
)

// change is one way in which an image in memory is not what its file is.
type change struct {
	Signature string
	First     pe.Range // addresses of the first place
	Detail    string
}

// changes lists where an image in memory at base is not what its file is.
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
			continue // data that a loader or a program may change as it likes
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

// changed notes changes of an image, one finding for each. x may be empty where none of
// them asks for it.
func (w *imageScanner) changed(ctx context.Context, it *item, all []change, f finding.Finding, x Content) {
	for _, c := range all {
		w.found(ctx, it.process, c.finding(f), x)
	}
}

// finding is a change as a finding; f is what it has in common with others of its image.
func (c *change) finding(f finding.Finding) finding.Finding {
	f.Kind, f.Signature, f.Detail = finding.KindModified, c.Signature, c.Detail
	f.Region = &finding.Region{Type: finding.RegionImage, Image: f.Image, Start: finding.Address(c.First.Start), End: finding.Address(c.First.End)}
	return f
}

// hashes names a rebuilt file in the ways that others know files by.
func hashes(file *pe.File, opt pe.Options) *finding.Hashes {
	h := pe.Hash(file)
	out := &finding.Hashes{ImportHash: h.ImportHash, Authenticode: h.Authenticode}
	for _, s := range h.Sections {
		out.Sections = append(out.Sections, finding.SectionHash{Name: s.Name, Size: s.Size, MD5: s.MD5})
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
