package introspect

import "vmav.dev/vmav/internal/winstruct"

// forgetFiles drops the offsets that lead from a mapping to its file: subsections, cache
// maps and entry points. They are useful, but nothing else in the guest proves them, and a
// wrong layout or a wrong page would be worse than none.
func (p *prover) forgetFiles() {
	o := p.g.off
	o.Entry.Entry, o.FilePointers = winstruct.Missing, winstruct.Missing
	none := winstruct.Field{}
	s := &o.Subsection
	s.Size, s.Base, s.Next, s.Flags = winstruct.Missing, winstruct.Missing, winstruct.Missing, winstruct.Missing
	s.Pages, s.Sector, s.Full, s.Protection, s.SectorHigh, s.End = none, none, none, none, none, none
	o.Control.Size, o.Control.Flags, o.Control.Image = winstruct.Missing, winstruct.Missing, none
	o.Pointers.Size, o.Pointers.Data, o.Pointers.Cache = winstruct.Missing, winstruct.Missing, winstruct.Missing
	c := &o.Cache
	c.Size, c.FileSize, c.SectionSize, c.Vacbs = winstruct.Missing, winstruct.Missing, winstruct.Missing, winstruct.Missing
	o.Vacb.Size, o.Vacb.Base, o.Vacb.Map = winstruct.Missing, winstruct.Missing, winstruct.Missing
	p.unproven = append(p.unproven, "_SUBSECTION", "_SHARED_CACHE_MAP")
}

// forgetKills drops the offsets that only a kill reads. A guest with inferred offsets
// refuses kills, so a proof of them is not worth its cost.
func (p *prover) forgetKills() {
	o := p.g.off
	none := winstruct.Field{}
	o.Process.Token, o.Process.Exiting, o.Process.Delete = winstruct.Missing, none, none
	o.Process.VadCount = none // a hint for Pulse; without it, a change is seen later
	o.Token.Count, o.Token.Users, o.Token.SID = winstruct.Missing, winstruct.Missing, winstruct.Missing
	t := &o.TEB
	t.Self, t.StackBase, t.StackLimit, t.PID = winstruct.Missing, winstruct.Missing, winstruct.Missing, winstruct.Missing
	t.TID, t.LastError, t.LastStatus, o.ObjectBody = winstruct.Missing, winstruct.Missing, winstruct.Missing, winstruct.Missing
	p.unproven = append(p.unproven, "_TOKEN", "_TEB", "_OBJECT_HEADER")
}
