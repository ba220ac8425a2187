package history

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Head is a place in the log: a record's number and the MAC of the chain up to it.
type Head struct {
	Seq int64
	MAC []byte
}

// String is the form that ParseHead reads.
func (h Head) String() string { return fmt.Sprintf("%d:%x", h.Seq, h.MAC) }

// ParseHead reads a head as String writes it.
func ParseHead(s string) (h Head, err error) {
	if n, err := fmt.Sscanf(s, "%d:%x", &h.Seq, &h.MAC); n != 2 || err != nil || len(h.MAC) != sha256.Size || h.String() != s {
		return Head{}, fmt.Errorf("head %q: it has the form NUMBER:MAC, as history verify prints it", s)
	}
	return h, nil
}

// Verified describes the log that Verify found to be whole.
type Verified struct {
	First   int64 // the first record that is kept; 0 for none
	Records int64
	Head    Head
}

// Verify proves that the log is as it was written: every record from the first that is
// kept to the last, and the tables that queries read. Otherwise the error names the
// first record that differs, and wraps ErrBroken. noted may be nil. If it is given, it
// must be in the log: this finds an older copy of the database in the place of this one.
func (db *DB) Verify(ctx context.Context, noted *Head) (v Verified, err error) {
	conn, err := db.sql.Conn(ctx)
	if err != nil {
		return v, err
	}
	defer conn.Close()
	// This cannot be done within the transaction.
	if _, err := conn.ExecContext(ctx, "ATTACH ':memory:' AS fresh"); err != nil {
		return v, fmt.Errorf("verify history: %w", err)
	}
	last := context.WithoutCancel(ctx)
	defer func() { _, _ = conn.ExecContext(last, "DETACH fresh") }()
	if _, err := conn.ExecContext(ctx, "BEGIN"); err != nil {
		return v, fmt.Errorf("verify history: %w", err)
	}
	defer func() { _, _ = conn.ExecContext(last, "ROLLBACK") }()
	t := &txn{conn, ctx, db}
	if v, err = t.verifyLog(noted); err == nil {
		err = t.verifyDerived()
	}
	if err != nil {
		return v, fmt.Errorf("verify history: %w", err)
	}
	return v, nil
}

func (t *txn) verifyLog(noted *Head) (v Verified, err error) {
	base, err := t.getMark(metaBase)
	if err != nil {
		return v, err
	}
	head, err := t.getMark(metaHead)
	if err != nil {
		return v, err
	}
	at := base
	var seen bool // the noted head
	err = t.each(0, func(r *row) error {
		switch {
		case r.seq <= base.seq:
			return fmt.Errorf("%w: record %d should have been pruned", ErrBroken, r.seq)
		case r.seq != at.seq+1:
			return fmt.Errorf("%w: record %d is missing", ErrBroken, at.seq+1)
		case !hmac.Equal(r.mac, chained(t.db.key, at.mac, r)):
			return fmt.Errorf("%w: record %d (%s, %s) is not as it was written", ErrBroken, r.seq, r.kind, time.Unix(0, r.at).UTC().Format(time.RFC3339))
		}
		at = mark{r.seq, r.mac}
		if noted != nil && r.seq == noted.Seq {
			if seen = bytes.Equal(noted.MAC, r.mac); !seen {
				return fmt.Errorf("%w: record %d is not the one that was noted", ErrBroken, r.seq)
			}
		}
		if v.First == 0 {
			v.First = r.seq
		}
		v.Records++
		return nil
	})
	if err != nil {
		return v, err
	}
	switch {
	case at.seq < head.seq:
		return v, fmt.Errorf("%w: record %d is missing, and all behind it up to %d", ErrBroken, at.seq+1, head.seq)
	case at.seq > head.seq || !hmac.Equal(at.mac, head.mac):
		return v, fmt.Errorf("%w: it goes on to record %d, behind its end at %d", ErrBroken, at.seq, head.seq)
	case noted != nil && noted.Seq > head.seq:
		return v, fmt.Errorf("%w: it ends at record %d, before the noted %d: an older copy is in its place", ErrBroken, head.seq, noted.Seq)
	case noted != nil && !seen && noted.Seq == base.seq && !bytes.Equal(noted.MAC, base.mac):
		return v, fmt.Errorf("%w: record %d, since pruned, is not the one that was noted", ErrBroken, noted.Seq)
	case noted != nil && !seen && noted.Seq < base.seq:
		return v, fmt.Errorf("record %d was pruned; the oldest that can be looked at is %d", noted.Seq, base.seq)
	}
	v.Head = Head{head.seq, head.mac}
	return v, nil
}

// verifyDerived derives the tables again, in memory, and compares.
func (t *txn) verifyDerived() error {
	if err := t.derive("fresh"); err != nil {
		return err
	}
	var first int64
	var where string
	for _, d := range derived {
		q := fmt.Sprintf(`SELECT min(%[1]s) FROM (SELECT %[1]s FROM (SELECT * FROM main.%[2]s EXCEPT SELECT * FROM fresh.%[2]s)
			UNION SELECT %[1]s FROM (SELECT * FROM fresh.%[2]s EXCEPT SELECT * FROM main.%[2]s))`, d.id, d.table)
		var id sql.NullInt64
		if err := t.QueryRowContext(t.ctx, q).Scan(&id); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if id.Valid && (first == 0 || id.Int64 < first) {
			first, where = id.Int64, d.table
		}
	}
	if where != "" {
		return fmt.Errorf("%w: what the table %s says of record %d is not what its log says", ErrBroken, where, first)
	}
	return nil
}

// Head is the end of the log now. If you note it elsewhere, Verify can tell later
// whether the database was replaced by an older copy.
func (db *DB) Head(ctx context.Context) (h Head, err error) {
	err = db.transact(ctx, "BEGIN", func(t *txn) error {
		m, err := t.getMark(metaHead)
		h = Head{m.seq, m.mac}
		return err
	})
	return h, err
}
