// Package hook is what libvirt's hook of a domain does, and how it is installed.
//
// libvirt waits for a hook, takes what it prints for the domain's XML, its failure for a
// veto, and blocks where it calls libvirt (https://libvirt.org/hooks.html). So Run reads what
// it is given, prints nothing, fails never, calls nobody that calls libvirt, and returns at
// once: what it has to say goes to the service's socket or, where none listens, to a spool
// that a scan of its own is started for.
//
// Everything that a hook is given is hostile: the name of a domain is its owner's choice.
package hook
