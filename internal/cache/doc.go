// Package cache keeps what sweeps remember beyond one run: small values under keys of 32
// bytes, in one SQLite database that several processes use at once.
//
// It is a cache and nothing else: any entry may be gone at any time, and whatever goes
// wrong with the file costs entries, never an answer that was not put. Each entry carries
// a keyed digest of its key and value, which SQLite's own checks do not give; where one
// does not fit, or SQLite finds the file damaged, the database is made anew and the owner
// is told.
//
// The database holds the secret under which pages of guests are digested. Its files are
// the owner's alone: 0600 in a directory of 0700.
//
// The package knows nothing of guests or engines and imports no other package of the
// project.
package cache
