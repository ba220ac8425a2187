// Package worker is the parent of what scans a guest in a process without rights, and has no
// code:
//
//	wire     what both sides say to each other, and its bounds
//	broker   the side with rights: it starts the process and answers its questions
//	inside   the side without: it scans
//	confine  how the rights go
//
// The broker never imports inside, nor inside the broker: the program that starts is the one
// that is started, and cmd/vmav is where the two meet.
package worker
