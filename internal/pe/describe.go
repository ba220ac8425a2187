package pe

import (
	"fmt"
	"strconv"
	"strings"
)

// Describe returns the record in words: a few lines, each a sentence. Names from the guest
// are quoted.
func (f *Fidelity) Describe() []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch {
	case f.CheckSum.Matches:
		say("The rebuilt file of %d bytes is the file: its checksum matches.", f.FileSize)
	case f.Exact():
		say("The rebuilt file of %d bytes is, as far as memory can show, the file%s.", f.FileSize, f.upToOverlay())
	case f.Complete():
		say("The rebuilt file of %d bytes holds all that the image holds.", f.FileSize)
	default:
		say("The rebuilt file of %d bytes is incomplete: %.1f %% of it is known.", f.FileSize, 100*f.Coverage())
	}
	if n := f.Bytes.Missing; n > 0 {
		say("%d bytes are on pages that are not present, in %d runs of the image; zeros stand in for them.", n, len(f.MissingRVAs))
	}
	if n := f.Bytes.PagedIn; n > 0 {
		say("%d bytes were not in memory until the guest read them in on request.", n)
	}
	if n := f.Bytes.Unknown; n > 0 {
		say("%d bytes were changed by the loader in ways that could not be undone: %s.", n, f.unknownCauses())
	}
	if n := f.Bytes.Assumed; n > 0 {
		say("%d bytes were never mapped and are taken to be zeros.", n)
	}
	if f.Headers != HeadersMemory {
		say("The headers in memory do not serve; the layout is from %s.", map[HeaderSource]string{
			HeadersShared: "the section's own page", HeadersCache: "the cached file",
			HeadersLayout: "the section object", HeadersAnalysis: "analysis of the bytes"}[f.Headers])
	}
	proof := "likely"
	if f.Base.Proven {
		proof = "proven"
	}
	say("Mapped at %#x, linked for %#x (%s, by %s); %d relocations undone.", f.Base.Actual, f.Base.Preferred, proof, f.Base.Method, f.Relocations.Undone)
	if r := f.Relocations; r.Guessed+r.Unsupported+r.Invalid > 0 {
		say("Relocations: %d undone without their table, %d of a type for another processor, %d outside the image.", r.Guessed, r.Unsupported, r.Invalid)
	}
	if i := f.Imports; i.Modules > 0 || i.Delay > 0 {
		say("Imports of %d modules: %d slots restored from names, %d from exports, %d delayed, %d unresolved.", i.Modules, i.Restored, i.Resolved, i.Delay,
			i.Unresolved)
	}
	var whole, partial, asIs []string
	for _, s := range f.Sections {
		name := strconv.Quote(s.Name)
		switch s.State {
		case SectionExact:
			whole = append(whole, name)
		case SectionMemory, SectionAssumed:
			asIs = append(asIs, name)
		case SectionPartial, SectionAbsent:
			partial = append(partial, name)
		}
	}
	list := func(what string, names []string) {
		if len(names) > 0 {
			more := ""
			if n := len(names) - 16; n > 0 {
				names, more = names[:16], fmt.Sprintf(" and %d more", n)
			}
			say("%s: %s%s.", what, strings.Join(names, ", "), more)
		}
	}
	list("Sections that are the file's", whole)
	list("Sections that are complete, but writable or with a tail that is never mapped", asIs)
	list("Sections with bytes missing or unknown", partial)
	if n := f.NeverMapped.OverlayAtLeast; n > 0 {
		say("At least %d bytes beyond the last section are not there; they are never mapped.", n)
	}
	for _, c := range f.Conflicts[:min(len(f.Conflicts), 8)] {
		what := "data"
		if c.Code {
			what = "code"
		}
		say("The %s at RVA %#x (%d bytes, section %s) differs from its %s: %s for %s.", what, c.RVA, c.Len(), strconv.Quote(c.Section),
			map[string]string{Prototype.String(): "section's page", FileCache.String(): "file"}[c.Source], c.Memory, c.File)
	}
	if n := len(f.Conflicts) - 8; n > 0 {
		say("%d more places differ.", n)
	}
	if len(f.MemoryOnly) > 0 {
		var n uint64
		for _, r := range f.MemoryOnly {
			n += r.Len()
		}
		say("%d bytes of executable memory are not in the file: code that came after loading.", n)
	}
	var can, cannot, may []string
	for _, s := range f.Signatures {
		switch s.Support {
		case SupportYes:
			can = append(can, string(s.Kind))
		case SupportNo:
			cannot = append(cannot, string(s.Kind))
		default:
			may = append(may, string(s.Kind))
		}
	}
	list2 := func(what string, kinds []string) {
		if len(kinds) > 0 {
			say("%s: %s.", what, strings.Join(kinds, ", "))
		}
	}
	list2("Signatures that match as on the original", can)
	list2("Signatures that may or may not", may)
	list2("Signatures that cannot match", cannot)
	return append(out, f.Notes...)
}

func (f *Fidelity) upToOverlay() string {
	if f.NeverMapped.OverlayKnown && f.NeverMapped.OverlayAtLeast == 0 {
		return ""
	}
	return " up to its overlay"
}

// unknownCauses lists the causes of unknown bytes, the first few with their counts.
func (f *Fidelity) unknownCauses() string {
	var causes []Cause
	n := map[Cause]uint64{}
	for _, g := range f.Gaps {
		switch g.Cause {
		case CauseMissing, CauseUnmapped, CauseOverlay:
			continue
		}
		if n[g.Cause] == 0 {
			causes = append(causes, g.Cause)
		}
		n[g.Cause] += g.Len()
	}
	parts := make([]string, 0, len(causes))
	for _, c := range causes {
		parts = append(parts, fmt.Sprintf("%s (%d)", c, n[c]))
	}
	return strings.Join(parts, ", ")
}
