package pe

import (
	"fmt"
	"strings"
)

// SignatureKind is a kind of ClamAV signature, according to the parts of a file that it
// needs.
type SignatureKind string

// Kinds of signatures.
const (
	SigFileHash    SignatureKind = "file-hash"    // .hdb, .hsb: every byte
	SigSectionHash SignatureKind = "section-hash" // .mdb, .msb: raw size and hash of a section
	SigImportHash  SignatureKind = "import-hash"  // .imp: import names in order
	SigBody        SignatureKind = "body"         // .ndb at any offset, and what .ldb, YARA and bytecode build on
	SigEntryPoint  SignatureKind = "entry-point"  // .ndb at EP±n
	SigSection     SignatureKind = "section"      // .ndb at Sx+n, SL+n, SEx
	SigAbsolute    SignatureKind = "absolute"     // .ndb at a file offset
	SigEndOfFile   SignatureKind = "end-of-file"  // .ndb at EOF-n, and conditions on the file's size
	SigAllowList   SignatureKind = "allow-list"   // .fp, .sfp, trusted certificates: a clean file recognised as such
)

// Support says how well signatures of a kind can match a rebuilt file.
type Support string

// Degrees of support.
const (
	SupportYes    Support = "yes"    // as on the original
	SupportPartly Support = "partly" // where the bytes they look at are known
	SupportMaybe  Support = "maybe"  // only if the original has nothing that memory cannot show, such as an overlay
	SupportNo     Support = "no"
)

// SignatureSupport is the prediction for one kind of signature.
type SignatureSupport struct {
	Kind    SignatureKind `json:"kind"`
	Support Support       `json:"support"`
	Why     string        `json:"why,omitempty"`
}

// SectionHashSupport predicts whether a hash of section i matches the original's.
func (f *Fidelity) SectionHashSupport(i int) Support {
	if i < 0 || i >= len(f.Sections) {
		return SupportNo
	}
	switch s := &f.Sections[i]; s.State {
	case SectionExact:
		if !f.baseSettled() {
			return SupportMaybe
		}
		return SupportYes
	case SectionAssumed, SectionMemory:
		if f.CheckSum.Matches {
			return SupportYes
		}
		return SupportMaybe
	default:
		return SupportNo
	}
}

// signatures predicts, from the rest of the record, which kinds of signatures
// can match.
func (f *Fidelity) signatures(h *Headers) []SignatureSupport {
	overlay := "the file may have bytes beyond its last section, which are never mapped"
	lost := ""
	switch {
	case f.NeverMapped.OverlayKnown && f.NeverMapped.OverlayAtLeast == 0:
		overlay = "" // the size is known, and every byte of it
	case f.NeverMapped.OverlayKnown:
		overlay = fmt.Sprintf("at least %d bytes beyond the last section were never mapped", f.NeverMapped.OverlayAtLeast)
	case f.CheckSum.Matches:
		overlay = ""
	}
	if n := f.Bytes.Missing + f.Bytes.Unknown; n > 0 {
		lost = fmt.Sprintf("%d of %d bytes are not known", n, f.FileSize)
	} else if !f.baseSettled() {
		lost = "the preferred base is not proven"
	}
	out := make([]SignatureSupport, 0, 9)
	add := func(k SignatureKind, s Support, why string) {
		out = append(out, SignatureSupport{k, s, why})
	}
	switch {
	case f.Bytes.Missing+f.Bytes.Unknown > 0:
		add(SigFileHash, SupportNo, lost)
	case f.NeverMapped.OverlayAtLeast > 0:
		add(SigFileHash, SupportNo, overlay)
	case f.CheckSum.Matches:
		add(SigFileHash, SupportYes, "")
	case !f.Base.Proven:
		add(SigFileHash, SupportMaybe, "the preferred base is not proven")
	case f.writable > 0:
		add(SigFileHash, SupportMaybe, strings.TrimSuffix(fmt.Sprintf("%d bytes are writable; %s", f.writable, overlay), "; "))
	case overlay == "" && f.Bytes.Assumed == 0:
		add(SigFileHash, SupportYes, "")
	default:
		add(SigFileHash, SupportMaybe, overlay)
	}
	good, bad := 0, 0
	for i := range f.Sections {
		switch f.SectionHashSupport(i) {
		case SupportYes:
			good++
		case SupportNo, SupportMaybe:
			if f.Sections[i].State != SectionNoData {
				bad++
			}
		}
	}
	switch {
	case bad == 0:
		add(SigSectionHash, SupportYes, "")
	case good > 0:
		add(SigSectionHash, SupportPartly, fmt.Sprintf("%d of %d sections", good, good+bad))
	default:
		add(SigSectionHash, SupportMaybe, "no section is known to be exact")
	}
	switch {
	case f.Imports.Invalid || f.Imports.Unresolved > 0:
		add(SigImportHash, SupportNo, fmt.Sprintf("%d import slots are not restored", f.Imports.Unresolved))
	case f.Headers == HeadersAnalysis || f.Headers == HeadersLayout:
		add(SigImportHash, SupportNo, "the headers are not the file's")
	case f.Imports.LostNames > 0:
		add(SigImportHash, SupportNo, fmt.Sprintf("%d import names are on missing pages", f.Imports.LostNames))
	default:
		add(SigImportHash, SupportYes, "")
	}
	body, why := SupportYes, ""
	if lost != "" {
		body, why = SupportPartly, lost
	} else if f.writable > 0 {
		body, why = SupportPartly, fmt.Sprintf("%d bytes are writable and as they are now", f.writable)
	} else if f.NeverMapped.OverlayAtLeast > 0 {
		body, why = SupportPartly, overlay
	}
	add(SigBody, body, why)
	located, lwhy := body, why
	if f.Headers == HeadersAnalysis {
		located, lwhy = SupportNo, "the section table is not the file's"
	}
	ep := located
	if f.Headers != HeadersMemory && h.EntryPoint == 0 {
		ep, lwhy = SupportNo, "the entry point is not known"
	}
	add(SigEntryPoint, ep, lwhy)
	add(SigSection, located, lwhy)
	add(SigAbsolute, located, lwhy)
	switch {
	case overlay == "":
		add(SigEndOfFile, located, lwhy)
	case f.NeverMapped.OverlayAtLeast > 0:
		add(SigEndOfFile, SupportNo, overlay)
	default:
		add(SigEndOfFile, SupportMaybe, overlay)
	}
	switch {
	case f.CheckSum.Matches || overlay == "" && lost == "" && f.writable == 0:
		add(SigAllowList, SupportYes, "")
	case f.NeverMapped.OverlayAtLeast > 0:
		add(SigAllowList, SupportNo, "the certificate or overlay is not mapped")
	default:
		add(SigAllowList, SupportMaybe, overlay)
	}
	return out
}
