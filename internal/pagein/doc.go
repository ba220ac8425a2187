// Package pagein has a guest read pages of its own files into memory, so that they can
// be scanned: pages that Windows has trimmed, or never read, are in no memory, and only
// the guest itself can get them.
//
// It owns the decision of which page may be asked for in which process and in what
// measure, and the session of actions that asks. A page is asked for by an injected page
// fault: a thread of a process that maps the file takes a fault for reading an address of
// its own, and the guest's kernel does what it does for any such fault. The thread notices
// nothing but the time it takes.
//
// What keeps it harmless: only pages of images that a process maps, whose entry in its
// tables says nothing of its own about them (introspect.PageInGuards), so that the fault
// can have no other end; the process's identity, its life, and the entry are looked at
// again by the module in the moment of delivery; that the range is still mapped is read
// again at least twice a second; a process that must be left alone is. What remains is a guest whose disk
// fails in that moment: the thread gets the exception that it would have got at its own
// first use of the page. So no process takes part whose end would be Windows' own.
//
// It must never import sweep, pe, clam or cmd.
package pagein
