package history

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
)

// Rows of meta: the end of the log, and the record before its first one.
const (
	metaHead = "head"
	metaBase = "base"
)

// maxBody bounds the content of one record, in bytes: much of it is the guest's text.
const maxBody = 4 << 20

// row is one record of the log.
type row struct {
	seq, at, scan int64
	kind, body    string
	mac           []byte
}

// chained is the MAC of a record after the one with the MAC prev. Fields have a fixed
// length, or their length comes before them, so no two records have the same input.
func chained(key, prev []byte, r *row) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("record\x00"))
	h.Write(prev)
	var n [8]byte
	for _, v := range []int64{r.seq, r.at, r.scan, int64(len(r.kind))} {
		binary.BigEndian.PutUint64(n[:], uint64(v))
		h.Write(n[:])
	}
	h.Write([]byte(r.kind))
	h.Write([]byte(r.body))
	return h.Sum(nil)
}

// mark is a place in the chain: a record's number and MAC.
type mark struct {
	seq int64
	mac []byte
}

// seal is a MAC of a mark. It proves that whoever set the mark has the key.
func seal(key []byte, name string, m mark) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("mark\x00" + name + "\x00"))
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(m.seq))
	h.Write(n[:])
	h.Write(m.mac)
	return h.Sum(nil)
}

// firstMark sets a mark to the beginning of an empty log, if the mark is not set.
func (t *txn) firstMark(name string) error {
	m := mark{0, make([]byte, sha256.Size)}
	_, err := t.ExecContext(t.ctx, "INSERT OR IGNORE INTO meta (name, seq, mac, seal) VALUES (?, ?, ?, ?)", name, m.seq, m.mac, seal(t.db.key, name, m))
	return err
}

func (t *txn) setMark(name string, m mark) error {
	_, err := t.ExecContext(t.ctx, "UPDATE meta SET seq = ?, mac = ?, seal = ? WHERE name = ?", m.seq, m.mac, seal(t.db.key, name, m), name)
	return err
}

// getMark reads a mark and proves it.
func (t *txn) getMark(name string) (m mark, err error) {
	var s []byte
	if err := t.QueryRowContext(t.ctx, "SELECT seq, mac, seal FROM meta WHERE name = ?", name).Scan(&m.seq, &m.mac, &s); err != nil {
		return m, fmt.Errorf("%w: its mark %q: %w", ErrBroken, name, err)
	}
	if !hmac.Equal(s, seal(t.db.key, name, m)) {
		return m, fmt.Errorf("%w: its mark %q at record %d was not set by vmav, or not with this key", ErrBroken, name, m.seq)
	}
	return m, nil
}

// append adds a record to the log and to the derived tables, and returns its number. If
// scan is 0, the record begins a run.
func (t *txn) append(kind string, scan int64, at time.Time, content any) (int64, error) {
	body, err := json.Marshal(content)
	if err != nil {
		return 0, err
	}
	if len(body) > maxBody {
		return 0, fmt.Errorf("a record of %d bytes: at most %d are kept", len(body), maxBody)
	}
	head, err := t.getMark(metaHead)
	if err != nil {
		return 0, err
	}
	r := &row{seq: head.seq + 1, at: at.UnixNano(), scan: scan, kind: kind, body: string(body)}
	if kind == kindBegin {
		r.scan = r.seq
	}
	r.mac = chained(t.db.key, head.mac, r)
	const insert = "INSERT INTO log (seq, at, scan, kind, body, mac) VALUES (?, ?, ?, ?, ?, ?)"
	if _, err := t.ExecContext(t.ctx, insert, r.seq, r.at, r.scan, r.kind, r.body, r.mac); err != nil {
		return 0, err
	}
	if err := t.setMark(metaHead, mark{r.seq, r.mac}); err != nil {
		return 0, err
	}
	return r.seq, t.apply("main", r)
}

// each calls f for the records of the log in order, beginning with the number from.
func (t *txn) each(from int64, f func(r *row) error) error {
	rows, err := t.QueryContext(t.ctx, "SELECT seq, at, scan, kind, body, mac FROM log WHERE seq >= ? ORDER BY seq", from)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.seq, &r.at, &r.scan, &r.kind, &r.body, &r.mac); err != nil {
			return err
		}
		if err := f(&r); err != nil {
			return err
		}
	}
	return rows.Err()
}
