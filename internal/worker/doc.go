// Package worker has no code. Its subpackages scan a guest in a process without rights, the
// worker:
//
//	wire     the messages between the two sides, and their bounds
//	broker   the side with rights: it starts the worker and answers its questions
//	inside   the side without rights: it scans
//	confine  how a process gives up its rights
//
// Package broker never imports inside, nor inside broker. A worker is the same program as
// the one that starts it, and cmd/vmav is where the two meet.
package worker
