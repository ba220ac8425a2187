package history

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Limits bound the history. Zero means no limit.
type Limits struct {
	Age  time.Duration // of a record
	Size int64         // of the database, in bytes
}

// unfinishedFor is how long a run without an end counts as under way. Its records are
// kept until then.
const unfinishedFor = 24 * time.Hour

// roomShare is the share of the size limit that remains when the limit was reached, so
// that not every run prunes.
const roomShare = 0.8

// Pruned is what Prune removed and what it left.
type Pruned struct {
	Records int64 `json:"records"`
	Upto    int64 `json:"up_to"` // the last record that was removed, 0 for none
	Bytes   int64 `json:"bytes"` // size of the database afterwards
}

// pruneBody is the content of kindPrune.
type pruneBody struct {
	Origin Origin `json:"origin"`
	Pruned
}

// Prune removes the oldest records, in whole runs, until the limits are kept. It records
// that it did. The chain continues from the last record that was removed. Prune keeps a
// run that is under way, and everything after it.
func (db *DB) Prune(ctx context.Context, o Origin, l Limits) (Pruned, error) {
	var p Pruned
	err := db.write(ctx, func(t *txn) error {
		upto, err := t.upto(l)
		if err == nil && upto > 0 {
			p, err = t.prune(o, upto)
		}
		return err
	})
	if err == nil && p.Records > 0 {
		// This gives the pages back to the file system. If there are readers, it
		// happens later.
		for _, s := range []string{"PRAGMA incremental_vacuum", "PRAGMA wal_checkpoint(TRUNCATE)"} {
			if err = drain(ctx, db.sql, s); err != nil {
				break
			}
		}
	}
	if err == nil {
		p.Bytes, err = used(ctx, db.sql)
	}
	if err != nil {
		return p, fmt.Errorf("prune history: %w", err)
	}
	return p, nil
}

// drain runs a statement that works while its rows are read.
func drain(ctx context.Context, db *sql.DB, statement string) error {
	rows, err := db.QueryContext(ctx, statement)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}

type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// used is how many bytes of the database are in use.
func used(ctx context.Context, q queryer) (n int64, err error) {
	err = q.QueryRowContext(ctx, "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size").Scan(&n)
	return n, err
}

// upto is the last record to remove, 0 for none.
func (t *txn) upto(l Limits) (int64, error) {
	var upto int64
	if l.Age > 0 {
		var first sql.NullInt64 // the first that is young enough
		limit := time.Now().Add(-l.Age).UnixNano()
		if err := t.QueryRowContext(t.ctx, "SELECT coalesce((SELECT min(seq) FROM log WHERE at >= ?), max(seq) + 1) FROM log", limit).Scan(&first); err != nil {
			return 0, err
		}
		upto = first.Int64 - 1
	}
	size, err := used(t.ctx, t)
	if err != nil {
		return 0, err
	}
	if l.Size > 0 && size > l.Size {
		at, err := t.uptoSize(int64(roomShare*float64(l.Size)), size)
		if err != nil {
			return 0, err
		}
		upto = max(upto, at)
	}
	if upto <= 0 {
		return 0, nil
	}
	// A run that is under way stays, with everything after it.
	var under sql.NullInt64
	since := time.Now().Add(-unfinishedFor).UnixNano()
	if err := t.QueryRowContext(t.ctx, "SELECT min(id) FROM scans WHERE ended IS NULL AND began >= ?", since).Scan(&under); err != nil {
		return 0, err
	}
	if under.Valid {
		upto = min(upto, under.Int64-1)
	}
	// Runs are removed whole.
	for upto > 0 {
		var begin sql.NullInt64
		if err := t.QueryRowContext(t.ctx, "SELECT min(scan) FROM log WHERE seq > ?1 AND scan BETWEEN 1 AND ?1", upto).Scan(&begin); err != nil {
			return 0, err
		}
		if !begin.Valid {
			break
		}
		upto = begin.Int64 - 1
	}
	base, err := t.getMark(metaBase)
	if err != nil || upto <= base.seq {
		return 0, err
	}
	return upto, nil
}

// uptoSize is the last record to remove so that the database has the size want. now is
// its size. The records share it in proportion to their contents.
func (t *txn) uptoSize(want, now int64) (int64, error) {
	const row = 128 // bytes of a record without its content, about
	var all sql.NullInt64
	if err := t.QueryRowContext(t.ctx, "SELECT sum(length(body) + ?) FROM log", row).Scan(&all); err != nil {
		return 0, err
	}
	remove := int64(float64(all.Int64) * float64(now-want) / float64(now))
	rows, err := t.QueryContext(t.ctx, "SELECT seq, length(body) + ? FROM log ORDER BY seq", row)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var seq, size int64
	for remove > 0 && rows.Next() {
		if err := rows.Scan(&seq, &size); err != nil {
			return 0, err
		}
		remove -= size
	}
	return seq, rows.Err()
}

// prune removes the records up to one.
func (t *txn) prune(o Origin, upto int64) (p Pruned, err error) {
	base := mark{seq: upto}
	if err := t.QueryRowContext(t.ctx, "SELECT mac FROM log WHERE seq = ?", upto).Scan(&base.mac); err != nil {
		return p, err
	}
	res, err := t.ExecContext(t.ctx, "DELETE FROM log WHERE seq <= ?", upto)
	if err != nil {
		return p, err
	}
	if p.Records, err = res.RowsAffected(); err != nil {
		return p, err
	}
	for _, s := range []string{"DELETE FROM scans WHERE id <= ?", "DELETE FROM entries WHERE id <= ?", "DELETE FROM steps WHERE seq <= ?"} {
		if _, err := t.ExecContext(t.ctx, s, upto); err != nil {
			return p, err
		}
	}
	if err := t.setMark(metaBase, base); err != nil {
		return p, err
	}
	p.Upto = upto
	_, err = t.append(kindPrune, 0, time.Now(), pruneBody{o, p})
	return p, err
}
