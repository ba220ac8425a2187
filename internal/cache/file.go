package cache

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"syscall"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"
)

// Names of files in the directory. Whoever has the database open holds the lock shared. A
// new database is made only under the exclusive lock, because SQLite's files must not be
// removed while another process uses them. The mark says that a new one has to be made.
const (
	fileName   = "cache.db"
	lockSuffix = ".lock"
	markSuffix = ".damaged"
)

// layout is the version of the tables. A database of another version is replaced.
const layout = 1

// file is the database's file and its lock.
type file struct {
	path string
	lock *os.File
}

// errLayout reports a database with another version of the tables.
var errLayout = errors.New("it is of another version")

// openFile takes the lock, and makes a new database if the old one is marked.
func openFile(path string) (*file, error) {
	lock, err := os.OpenFile(path+lockSuffix, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	f := &file{path, lock}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_SH)
	if err == nil {
		if _, serr := os.Lstat(path + markSuffix); serr == nil {
			err = f.recreate()
		} else {
			err = f.own()
		}
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return f, nil
}

// own makes the file if it is missing, and refuses a file that others may have written.
func (f *file) own() error {
	db, err := os.OpenFile(f.path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer db.Close()
	st, err := db.Stat()
	if err != nil {
		return err
	}
	s, ok := st.Sys().(*syscall.Stat_t)
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 || !ok || int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a file of this user's alone (mode %s)", f.path, st.Mode())
	}
	return nil
}

// recreate replaces the database by an empty file.
func (f *file) recreate() error {
	fd := int(f.lock.Fd())
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = unix.Flock(fd, unix.LOCK_SH)
		f.condemn()
		return fmt.Errorf("%s is to be made anew, but another process has it open: %w", f.path, err)
	}
	var errs []error
	for _, suffix := range []string{"", "-wal", "-shm", "-journal", markSuffix} {
		if err := os.Remove(f.path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, f.own(), unix.Flock(fd, unix.LOCK_SH))
	return errors.Join(errs...)
}

// condemn marks the database to be replaced.
func (f *file) condemn() {
	if m, err := os.OpenFile(f.path+markSuffix, os.O_CREATE|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600); err == nil {
		m.Close()
	}
}

func (f *file) close() error { return f.lock.Close() }

// connection is an open database.
type connection struct {
	*sql.DB
	get    *sql.Stmt // value and used of a key
	secret [32]byte
}

// connect opens the database, with its tables and secret.
func (f *file) connect() (*connection, error) {
	dsn := url.URL{Scheme: "file", Opaque: (&url.URL{Path: f.path}).EscapedPath(),
		RawQuery: "_busy_timeout=5000&_journal_mode=WAL&_synchronous=NORMAL&_auto_vacuum=incremental&_txlock=immediate"}
	db, err := sql.Open("sqlite3", dsn.String())
	if err != nil {
		return nil, err
	}
	c := &connection{DB: db}
	if c.secret, err = prepare(db); err == nil {
		c.get, err = db.Prepare("SELECT value, used FROM entry WHERE key = ?")
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return c, nil
}

// prepare makes the tables and the secret if they are missing. If several processes try,
// one succeeds.
func prepare(db *sql.DB) (secret [32]byte, err error) {
	tx, err := db.Begin()
	if err != nil {
		return secret, err
	}
	defer func() { _ = tx.Rollback() }() // fails once it was committed
	var version int
	if err := tx.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return secret, err
	}
	if version == 0 {
		if _, err := rand.Read(secret[:]); err != nil {
			return secret, err
		}
		sum := sha256.Sum256(secret[:])
		for _, q := range []string{
			"CREATE TABLE entry (key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL, used INTEGER NOT NULL)",
			"CREATE INDEX entry_used ON entry (used)",
			"CREATE TABLE secret (value BLOB NOT NULL, sum BLOB NOT NULL)",
			fmt.Sprintf("PRAGMA user_version = %d", layout),
		} {
			if _, err := tx.Exec(q); err != nil {
				return secret, err
			}
		}
		if _, err := tx.Exec("INSERT INTO secret (value, sum) VALUES (?, ?)", secret[:], sum[:]); err != nil {
			return secret, err
		}
		return secret, tx.Commit()
	}
	if version != layout {
		return secret, errLayout
	}
	var value, sum []byte
	if err := tx.QueryRow("SELECT value, sum FROM secret").Scan(&value, &sum); err != nil {
		return secret, err
	}
	if want := sha256.Sum256(value); len(value) != len(secret) || subtle.ConstantTimeCompare(want[:], sum) == 0 {
		return secret, errMAC
	}
	return [32]byte(value), nil
}

// damage reports whether an error means that the file is unusable.
func damage(err error) bool {
	if errors.Is(err, errMAC) || errors.Is(err, errLayout) || errors.Is(err, sql.ErrNoRows) {
		return true
	}
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case sqlite3.ErrCorrupt, sqlite3.ErrNotADB, sqlite3.ErrFormat, sqlite3.ErrError, sqlite3.ErrSchema, sqlite3.ErrMismatch:
		return true // ErrError: a table is not there
	case sqlite3.ErrIoErr:
		return e.ExtendedCode == sqlite3.ErrIoErrShortRead // it was cut off
	}
	return false
}

// evict removes the entries that were unused for longest, until the database takes at most
// nine tenths of its bound, and returns the space to the file system.
func evict(db *connection, size int64) error {
	for {
		var pages, free, page, entries int64
		for q, to := range map[string]*int64{"PRAGMA page_count": &pages, "PRAGMA freelist_count": &free, "PRAGMA page_size": &page} {
			if err := db.QueryRow(q).Scan(to); err != nil {
				return err
			}
		}
		if used := (pages - free) * page; used <= size*9/10 {
			break
		}
		if err := db.QueryRow("SELECT count(*) FROM entry").Scan(&entries); err != nil {
			return err
		}
		if entries == 0 {
			break
		}
		if _, err := db.Exec("DELETE FROM entry WHERE key IN (SELECT key FROM entry ORDER BY used LIMIT ?)", entries/8+1); err != nil {
			return err
		}
	}
	rows, err := db.Query("PRAGMA incremental_vacuum") // a page for each row that is asked for
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}
