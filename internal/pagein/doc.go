// Package pagein makes a guest read pages of its own files into memory, so that they can be
// scanned. Pages that Windows has trimmed or never read are not in memory, and only the
// guest itself can read them.
//
// It owns the decision which pages are requested of which process, the limits on that, and
// the session of actions through which requests are made. A request is an injected page
// fault: a thread of a process that maps the file takes a fault for reading one of its own
// addresses, and the guest's kernel handles it like any other fault. The thread notices
// only the time that this takes.
//
// These rules keep it harmless. Pages are only requested of images that the process maps,
// and only if the process's page table entry says nothing of its own about the page
// (introspect.PageInGuards), so that the fault can have no other outcome. The module checks
// the process's identity, that it lives, and the entry again at the moment of delivery.
// That the range is still mapped is checked at least twice a second. A process that must be
// left alone is left alone. One risk remains: if the guest's disk fails at that moment, the
// thread gets the exception that its own first access to the page would have caused.
// Therefore no process takes part whose end would stop Windows.
//
// It imports introspect and source. It must never import sweep, pe, clam or cmd.
package pagein
