// Package worker runs the sweep of one guest in a process of its own that has no rights: no
// file, no network, no other process, no privilege (package sandbox). The broker, the process
// that calls Domain, holds the device, libvirt and the engine, and answers the worker's
// questions: guest memory, profiles' files, what the engine says of a content, what follows of
// a finding.
//
// Who parses is taken to be lost: the broker believes a worker no size, index or claim that
// it can check, and what it cannot check is of that worker's own guest. docs/ARCHITECTURE.md
// says what a worker that was taken over can still do.
//
// A worker's end, for whatever reason, is an error of that sweep, with a name, and leaves
// what was reported before. The broker owns the process and ends it; nothing outlives Domain.
package worker
