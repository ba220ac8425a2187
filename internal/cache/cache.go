package cache

import (
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/minio/highwayhash"
)

// DefaultMaxSize is the default bound on the size of the database, in bytes.
const DefaultMaxSize = 256 << 20

// MinMaxSize is the smallest bound that may be set, in bytes.
const MinMaxSize = 1 << 20

// maxValue bounds one value, in bytes. What a sweep remembers of an image takes some
// hundred.
const maxValue = 64 << 10

const (
	maxPending = 512             // entries that wait to be written
	maxDelay   = 2 * time.Second // for how long they do
	usedUnit   = 4 * time.Hour   // what was used is noted no more often
)

// Options configure a DB.
type Options struct {
	MaxSize int64        // bytes; 0 for DefaultMaxSize
	Warn    func(string) // is told, in words, what went wrong with the file; nil for nobody
}

// DB is an open cache. It is safe for concurrent use; its owner closes it.
type DB struct {
	opt    Options
	file   *file
	secret [32]byte
	now    func() time.Time

	mu      sync.Mutex
	sql     *connection // nil once the file is of no use, or after Close
	pending map[[32]byte]pending
	timer   *time.Timer
	writing sync.Mutex // held over one transaction
	grown   int64      // bytes written since the size was looked at
}

// pending is an entry that is not written yet. With a nil value it only records that the
// entry was used.
type pending struct {
	value []byte
}

// Open opens the cache in a directory. It makes the directory and the database if they are
// missing, and a new database if the old one is damaged. The error says why there can be no
// cache. The caller closes the DB.
func Open(dir string, opt Options) (*DB, error) {
	if opt.MaxSize == 0 {
		opt.MaxSize = DefaultMaxSize
	}
	if opt.MaxSize < MinMaxSize {
		return nil, fmt.Errorf("open cache: a size of %d bytes: %d are the least", opt.MaxSize, MinMaxSize)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	f, err := openFile(filepath.Join(dir, fileName))
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	d := &DB{opt: opt, file: f, pending: make(map[[32]byte]pending), now: time.Now}
	if err := d.open(); err != nil {
		f.close()
		return nil, fmt.Errorf("open cache %s: %w", f.path, err)
	}
	return d, nil
}

// open connects to the database. It makes a new one if it is damaged.
func (d *DB) open() error {
	db, err := d.file.connect()
	if damage(err) {
		d.warn(fmt.Sprintf("the cache %s is damaged and is made anew: %v", d.file.path, err))
		if err = d.file.recreate(); err == nil {
			db, err = d.file.connect()
		}
	}
	if err != nil {
		return err
	}
	d.sql, d.secret = db, db.secret
	return nil
}

func (d *DB) warn(text string) {
	if d.opt.Warn != nil {
		d.opt.Warn(text)
	}
}

// Secret returns a key of 32 bytes that was made at random with the database and is stored
// nowhere else.
func (d *DB) Secret() [32]byte { return d.secret }

// macSize is the size of the digest that a stored value begins with.
const macSize = highwayhash.Size128

func (d *DB) mac(key [32]byte, value []byte) [macSize]byte {
	return highwayhash.Sum128(append(append([]byte("entry\x00"), key[:]...), value...), d.secret[:])
}

// Get returns the value of a key; ok is false if there is none.
func (d *DB) Get(key [32]byte) (value []byte, ok bool) {
	d.mu.Lock()
	if p := d.pending[key]; p.value != nil {
		d.mu.Unlock()
		return p.value, true
	}
	db := d.sql
	d.mu.Unlock()
	if db == nil {
		return nil, false
	}
	var stored []byte
	var used int64
	err := db.get.QueryRow(key[:]).Scan(&stored, &used)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, false
	}
	if err == nil && len(stored) < macSize {
		err = errMAC
	}
	if err == nil {
		value = stored[macSize:]
		if mac := d.mac(key, value); subtle.ConstantTimeCompare(mac[:], stored[:macSize]) == 0 {
			err = errMAC
		}
	}
	if err != nil {
		d.trouble(err)
		return nil, false
	}
	if used < d.unit() {
		d.enter(key, nil)
	}
	return value, true
}

func (d *DB) unit() int64 { return d.now().UnixNano() / int64(usedUnit) }

// Put stores a value under a key. It is written a little later, or by Flush.
func (d *DB) Put(key [32]byte, value []byte) {
	if len(value) <= maxValue {
		d.enter(key, append([]byte{}, value...))
	}
}

// enter records what has to be written.
func (d *DB) enter(key [32]byte, value []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sql == nil {
		return
	}
	if value != nil || d.pending[key].value == nil {
		d.pending[key] = pending{value}
	}
	switch {
	case len(d.pending) >= maxPending:
		go d.Flush()
	case d.timer == nil:
		d.timer = time.AfterFunc(maxDelay, d.Flush)
	}
}

// Flush writes what was put. Entries that cannot be written are lost.
func (d *DB) Flush() {
	d.writing.Lock()
	defer d.writing.Unlock()
	d.mu.Lock()
	db, todo := d.sql, d.pending
	d.pending = make(map[[32]byte]pending)
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.mu.Unlock()
	if db == nil || len(todo) == 0 {
		return
	}
	if err := d.write(db, todo); err != nil {
		d.trouble(err)
		return
	}
	if d.grown > d.opt.MaxSize/64 {
		d.grown = 0
		if err := evict(db, d.opt.MaxSize); err != nil {
			d.trouble(err)
		}
	}
}

func (d *DB) write(db *connection, todo map[[32]byte]pending) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // fails once it was committed
	put, err := tx.Prepare("INSERT INTO entry (key, value, used) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value, used = excluded.used")
	if err != nil {
		return err
	}
	touch, err := tx.Prepare("UPDATE entry SET used = ? WHERE key = ?")
	if err != nil {
		return err
	}
	unit := d.unit()
	for key, p := range todo {
		if p.value == nil {
			_, err = touch.Exec(unit, key[:])
		} else {
			mac := d.mac(key, p.value)
			_, err = put.Exec(key[:], append(mac[:], p.value...), unit)
			d.grown += int64(len(p.value)) + 100
		}
		if err != nil {
			return err
		}
	}
	return tx.Commit()
}

// Close writes what was put and closes the database.
func (d *DB) Close() error {
	d.Flush()
	d.mu.Lock()
	db := d.sql
	d.sql = nil
	d.mu.Unlock()
	var err error
	if db != nil {
		err = db.Close()
	}
	return errors.Join(err, d.file.close())
}

// errMAC reports that an entry is not what was put.
var errMAC = errors.New("an entry is not what was put")

// trouble handles an error of the database. A damaged one is replaced by a new one at once
// if no other process uses it, or else by the next process that opens it. Until then this
// process does without a cache.
func (d *DB) trouble(err error) {
	if !damage(err) {
		return // busy, or the disk is full: entries are lost, and no more
	}
	d.mu.Lock()
	db := d.sql
	d.sql = nil
	clear(d.pending)
	d.mu.Unlock()
	if db == nil {
		return
	}
	db.Close()
	d.file.condemn()
	d.warn(fmt.Sprintf("the cache %s is damaged and is not used any more, but made anew by the next run: %v", d.file.path, err))
}
