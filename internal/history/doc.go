// Package history keeps what vmav found, decided and did. It is an SQLite database in
// the state directory, and several processes can write to it at once.
//
// # The log is the truth
//
// Every record is a row of the table log: a number, a time, a kind, and its content as
// JSON. The numbers are the IDs that users see. Rows are chained: each carries an
// HMAC-SHA256 over itself and the row before. The key is in history.key (mode 0600),
// which is made with the database. So Verify finds a row that was changed, removed or
// inserted. The row "head" of meta is sealed with the same key and says how far the log
// goes. The row "base" says where the log begins since the last Prune.
//
// Whoever can read the key can forge the chain. An older copy of the whole database in
// the place of this one is found only by a head that was noted elsewhere (DB.Head). So
// the log is evidence against the careless, and against those who can write the file
// alone. It is no evidence against root.
//
// The tables scans, entries and steps hold what queries filter by. They are derived from
// the log alone (apply), in the same transaction. Verify compares them with the log.
//
// # Power cuts and order
//
// The database is in WAL mode with synchronous=FULL: when a write has returned, it is on
// disk. Nobody is told of a finding before Recorder.Found has returned.
//
// # Schema version and migration
//
// The layout of log and meta is fixed. PRAGMA user_version is the version of the derived
// tables. A vmav with a newer version drops them and derives them again, so there are no
// steps from version to version. A vmav refuses a database with a newer version than its
// own (ErrNewer). Contents gain fields, and a field never changes its meaning. Readers
// ignore fields that they do not know.
//
// # Why mattn/go-sqlite3
//
// vmav needs cgo anyway, for libvirt. The module is SQLite itself, and needs no other
// module. modernc.org/sqlite is a translation of SQLite with its own C runtime. The Go
// version and the libc package must agree on that runtime, and its file locks are
// another implementation.
//
// The package knows the domain model (finding) and verdicts. It must not import anything
// that reads guests.
package history
