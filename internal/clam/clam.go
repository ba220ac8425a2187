// Package clam scans rebuilt files with a ClamAV daemon. It speaks clamd's
// session protocol, passes what is to be scanned as sealed memory files, and can
// run a private clamd of its own where the host has none.
//
// The package knows nothing of guests and imports no other package of the
// project.
package clam
