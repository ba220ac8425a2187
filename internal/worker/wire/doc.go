// Package wire defines the messages between the two sides of a worker, and their bounds.
// The worker is a process without rights that scans one guest (package inside). The broker
// has the device, libvirt and the engine (package broker).
//
// The two talk through lanes. A lane is a socket pair that carries one question of the
// worker and its answer at a time. Each lane has a piece of shared memory, its part of the
// window, for what is larger than a packet. Every message is bounded and complete in
// itself. The receiver checks every message: the worker parses what a guest wrote, so the
// broker assumes that it has been taken over.
//
// The package decides nothing and starts nothing. It must import neither side.
package wire
