package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	_ "github.com/mattn/go-sqlite3" // the driver "sqlite3"
	"golang.org/x/sys/unix"
)

// Names in the state directory.
const (
	fileName = "history.db"
	keyName  = "history.key"
	lockName = "history.lock" // held while the database is made or its tables are derived
)

// busyMilliseconds is how long a process waits until others have written. A write is one
// short transaction, but Prune and the derivation of tables can take seconds.
const busyMilliseconds = 60000

// How long a process waits for the lock, and how often it tries. It does not wait for
// ever, as the holder may be a stopped process.
const lockWait, lockPoll = busyMilliseconds * time.Millisecond, 5 * time.Millisecond

// Errors a caller decides on; test with errors.Is.
var (
	// ErrNewer reports a database that a newer vmav has written.
	ErrNewer = errors.New("it was written by a newer vmav")
	// ErrNoRecord reports an ID that no record has.
	ErrNoRecord = errors.New("no such record")
	// ErrBroken reports a log that is not as it was written.
	ErrBroken = errors.New("the log is broken")
)

// DB is an open history. It is safe for concurrent use; the caller closes it.
type DB struct {
	sql  *sql.DB
	path string
	key  []byte
}

// Open opens the history in a state directory. If they do not exist, it makes the
// directory with mode 0700 and the files with mode 0600. The caller closes the DB.
func Open(dir string) (*DB, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open history: %w", err)
	}
	return open(dir, true)
}

// OpenExisting opens the history in a state directory to read it. If there is none, the
// error wraps fs.ErrNotExist. The caller closes the DB.
func OpenExisting(dir string) (*DB, error) {
	if _, err := os.Stat(filepath.Join(dir, fileName)); err != nil {
		return nil, fmt.Errorf("open history: %w", err)
	}
	return open(dir, false)
}

func open(dir string, create bool) (*DB, error) {
	path := filepath.Join(dir, fileName)
	db, err := prepare(dir, path, create)
	if err != nil {
		return nil, fmt.Errorf("open history %s: %w", path, err)
	}
	return db, nil
}

// prepare opens database and key under the lock: if two connections change the journal
// mode at once, SQLite does not wait.
func prepare(dir, path string, create bool) (*DB, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // releases the lock
	for end := time.Now().Add(lockWait); ; time.Sleep(lockPoll) {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
	}
	fresh := false
	if create {
		// SQLite would make it readable for everybody. SQLite's other files get the
		// mode of this one.
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return nil, err
		}
		fresh = st.Size() == 0
	}
	key, err := loadKey(filepath.Join(dir, keyName), fresh)
	if err != nil {
		return nil, err
	}
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: url.Values{
		"_busy_timeout": {fmt.Sprint(busyMilliseconds)}, "_synchronous": {"FULL"}, "_auto_vacuum": {"incremental"}, "mode": {"rw"},
	}.Encode()}).String()
	pool, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return nil, err
	}
	db := &DB{sql: pool, path: path, key: key}
	if err := db.setUp(context.Background()); err != nil {
		pool.Close()
		return nil, err
	}
	return db, nil
}

// Path is the database's file.
func (db *DB) Path() string { return db.path }

// Close closes the database.
func (db *DB) Close() error { return db.sql.Close() }

// layout is the fixed part of the schema.
const layout = `
CREATE TABLE IF NOT EXISTS log (
	seq  INTEGER PRIMARY KEY,
	at   INTEGER NOT NULL, -- nanoseconds since 1970
	scan INTEGER NOT NULL, -- seq of the record that began the run, its own for that one, 0 for none
	kind TEXT NOT NULL,
	body TEXT NOT NULL,    -- JSON
	mac  BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, seq INTEGER NOT NULL, mac BLOB NOT NULL, seal BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS log_scan ON log (scan);
`

// setUp makes the tables of a new database, or derives the tables of an older one again.
func (db *DB) setUp(ctx context.Context) error {
	var mode string
	if err := db.sql.QueryRowContext(ctx, "PRAGMA journal_mode=WAL").Scan(&mode); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("its file system has no write-ahead log (journal mode %q)", mode)
	}
	var version int
	if err := db.sql.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version == indexVersion {
		return nil
	}
	return db.write(ctx, func(t *txn) error {
		// Another process may have done it meanwhile.
		if err := t.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
			return err
		}
		switch {
		case version > indexVersion:
			return fmt.Errorf("%w (version %d; this one knows %d)", ErrNewer, version, indexVersion)
		case version == indexVersion:
			return nil
		}
		if _, err := t.ExecContext(ctx, layout); err != nil {
			return err
		}
		for _, name := range []string{metaBase, metaHead} {
			if err := t.firstMark(name); err != nil {
				return err
			}
		}
		if err := t.derive("main"); err != nil {
			return err
		}
		_, err := t.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version=%d", indexVersion))
		return err
	})
}

// txn is one write, or one consistent view.
type txn struct {
	*sql.Conn
	ctx context.Context
	db  *DB
}

// write runs do in one transaction. When write returns nil, the transaction is on disk.
func (db *DB) write(ctx context.Context, do func(t *txn) error) error {
	return db.transact(ctx, "BEGIN IMMEDIATE", do)
}

// transact runs do in a transaction that begins with a statement.
func (db *DB) transact(ctx context.Context, begin string, do func(t *txn) error) (err error) {
	conn, err := db.sql.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, begin); err != nil {
		return err
	}
	// A transaction must be ended even if its context has ended, because the connection
	// goes back to the pool.
	last := context.WithoutCancel(ctx)
	defer func() {
		if err != nil {
			_, _ = conn.ExecContext(last, "ROLLBACK") // it may have ended already, as on a full disk
		}
	}()
	if err := do(&txn{conn, ctx, db}); err != nil {
		return err
	}
	_, err = conn.ExecContext(last, "COMMIT")
	return err
}
