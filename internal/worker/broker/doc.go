// Package broker is the side of a worker that has rights: it starts the worker's process,
// hands it scans to do (package wire), and answers its questions from the device, the
// profiles' files, the engine and what is remembered. Runner makes scanners of it
// (scan.Scanner).
//
// Who parses is taken to be lost: the broker believes a worker no size, index or claim that
// it can check, and what it cannot check is of that worker's own guest. docs/ARCHITECTURE.md
// says what a worker that was taken over can still do.
//
// A worker's end, for whatever reason, is an error of that scan, with a name, and leaves
// what was told of before. The broker owns the process and ends it; nothing outlives the
// scan, but the workers of a Kept until it is closed. The package parses nothing that a guest
// wrote, and must import neither inside nor respond.
package broker
