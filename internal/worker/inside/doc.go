// Package inside is the worker's side: a process without rights that scans one guest after
// it has given up everything (package confine). Guest memory, profiles, the engine and what
// is remembered come from the broker, through lanes (package wire).
//
// It parses what hostile guests wrote, so it must not import what has rights: neither
// kill, respond, history, evidence, notify nor the broker, and neither os/exec nor net.
package inside
