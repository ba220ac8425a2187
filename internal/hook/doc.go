// Package hook implements vmav's libvirt hook for domains, and installs it.
//
// libvirt waits for a hook. It takes the hook's output for the domain's XML and the
// hook's failure for a veto, and a hook that calls libvirt blocks
// (https://libvirt.org/hooks.html). So Run reads its input, prints nothing, never fails,
// calls nobody that calls libvirt, and returns at once. It hands the event to the
// service's socket. If no service listens, it puts the event into a spool, and starts a
// scan of its own for it.
//
// Everything that a hook is given is hostile: the owner of a domain chooses its name.
package hook
