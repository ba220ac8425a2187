// Package broker is the side of a worker that has rights. It starts the worker's process,
// gives it jobs (package wire), and answers its questions from the device, the profiles'
// files, the engine and the memory of earlier scans. Runner makes scanners of it
// (scan.Scanner).
//
// The broker assumes that a process that parses has been taken over. It believes no size,
// index or claim of a worker that it can check. What it cannot check concerns only that
// worker's own guest. docs/ARCHITECTURE.md says what a worker that was taken over can still
// do.
//
// The end of a worker, whatever its reason, is an error of its scan. What was reported
// before remains. The broker owns the process and ends it. Nothing outlives the scan except
// the workers of a Kept, which live until it is closed. The package parses nothing that a
// guest wrote. It must import neither inside nor respond.
package broker
