// Package inside is the worker's side: a process without rights that scans one guest. It
// gives up all its rights first (package confine). Guest memory, profiles, the engine and
// the memory of earlier scans come from the broker, through lanes (package wire).
//
// It parses what hostile guests wrote. So it must not import what has rights: kill,
// respond, history, evidence, notify, the broker, os/exec or net.
package inside
