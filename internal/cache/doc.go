// Package cache keeps what sweeps remember beyond one run: small values under keys of 32
// bytes, in an SQLite database that several processes use at once.
//
// It is only a cache: any entry may be missing at any time. A damaged file costs entries,
// but never yields a value that was not put. SQLite's own checks do not guarantee that, so
// each entry has a keyed digest of its key and value. If a digest does not fit, or SQLite
// finds the file damaged, the database is replaced by a new one and the owner is told.
//
// The database holds the secret with which pages of guests are digested. Only the owner can
// read its files: they have mode 0600 in a directory of mode 0700.
//
// The package knows nothing of guests or engines and imports no other package of the
// project.
package cache
