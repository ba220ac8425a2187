// Package wire is what the two sides of a worker say to each other, and its bounds: the
// worker, a process without rights that scans one guest (package inside), and the broker,
// which has the device, libvirt and the engine (package broker).
//
// They talk through lanes. A lane is a socket pair that carries one question of the worker
// and its answer at a time, with a piece of shared memory, its window, for what is larger
// than a packet. Every message is bounded and self-contained. Who reads one checks it: the
// worker parses what a guest wrote, so the broker takes it to be lost.
//
// The package decides nothing and starts nothing, and must import neither side.
package wire
