// Package history keeps what vmav found, decided and did: an SQLite database in the state
// directory, written by several processes at once.
//
// # The log is the truth
//
// Every record is a row of the table log: a number, a time, a kind, and its content as
// JSON. The numbers are the IDs that users see. Rows are chained: each carries an
// HMAC-SHA256 over itself and the row before, with the key in history.key (mode 0600, made
// with the database), so that a row that was changed, removed or put in between is found by
// Verify. The row "head" of meta is sealed with the same key and tells how far the log
// goes; the row "base" tells where it begins since the last Prune. Who can read the key can
// forge the chain, and who can put an older copy of the whole database in its place is
// found only by a head that was noted elsewhere (DB.Head): the log is evidence
// against the careless and against who can write the file alone, not against root.
//
// The tables scans, entries and steps hold what queries filter by. They are derived from
// the log alone (apply), in the same transaction, and Verify compares them with it.
//
// # Power cuts and order
//
// The database is in WAL mode with synchronous=FULL: a write that has returned is on disk.
// A finding is told to anyone only after Recorder.Found has returned.
//
// # Schema version and migration
//
// The layout of log and meta is fixed. PRAGMA user_version is the version of the derived
// tables; a vmav with a newer one drops them and derives them anew, so there are no steps
// from version to version. A database with a newer version than this vmav's is refused
// (ErrNewer). Contents gain fields and never change the meaning of one; readers ignore the
// fields they do not know.
//
// # Why mattn/go-sqlite3
//
// vmav is built with cgo anyway, for libvirt. It is SQLite itself, in one module without
// further ones; modernc.org/sqlite is a translation with a C runtime of its own that the
// Go version in use and the libc package must agree on, and its file locks are written
// anew for it.
//
// The package knows results (report) and verdicts; it must import nothing that reads
// guests.
package history
