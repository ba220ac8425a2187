package history

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// at records a scan with findings as if it had been then.
func at(t *testing.T, db *DB, when time.Time, names ...string) {
	t.Helper()
	err := db.write(context.Background(), func(tx *txn) error {
		run, err := tx.begin(Run{Origin: self, Operation: OperationScan, Domain: "win10"}, when)
		if err != nil {
			return err
		}
		for _, n := range names {
			f := found(8, n)
			if err := tx.found(run, &f, when); err != nil {
				return err
			}
		}
		return tx.end(run, scan(), when)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func signatures(t *testing.T, db *DB) string {
	t.Helper()
	all, err := db.Entries(context.Background(), Filter{})
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range all {
		s = append(s, e.Signature)
	}
	return strings.Join(s, " ")
}

func TestPruneByAgeKeepsTheChain(t *testing.T) {
	ctx := context.Background()
	db := openDB(t, t.TempDir())
	now := time.Now()
	at(t, db, now.Add(-10*24*time.Hour), "A")
	at(t, db, now.Add(-9*24*time.Hour), "B", "C")
	at(t, db, now.Add(-2*24*time.Hour), "D")
	at(t, db, now, "E")
	if p, err := db.Prune(ctx, self, Limits{Age: 365 * 24 * time.Hour, Size: 1 << 30}); err != nil || p.Records != 0 {
		t.Errorf("nothing is too old: %+v, %v", p, err)
	}
	p, err := db.Prune(ctx, self, Limits{Age: 3 * 24 * time.Hour})
	if err != nil || p.Records != 7 || p.Upto != 7 {
		t.Errorf("%+v, %v; want 7 records", p, err)
	}
	if got := signatures(t, db); got != "E D" {
		t.Errorf("left: %s", got)
	}
	if v := verify(t, db); v.First != 8 || v.Records != 7 {
		t.Errorf("%+v", v)
	}
	var body string
	if err := db.sql.QueryRow("SELECT body FROM log WHERE kind = 'prune'").Scan(&body); err != nil {
		t.Fatal(err)
	}
	var b pruneBody
	if err := json.Unmarshal([]byte(body), &b); err != nil || b.Origin != self || b.Records != 7 {
		t.Errorf("%s, %v", body, err)
	}
	at(t, db, now, "F")
	verify(t, db)
	if p, err := db.Prune(ctx, self, Limits{Age: time.Nanosecond}); err != nil || p.Records != 10 {
		t.Errorf("all: %+v, %v", p, err)
	}
	if v := verify(t, db); v.Records != 1 || signatures(t, db) != "" {
		t.Errorf("%+v", v)
	}
}

// Runs that overlap are removed or kept whole, and one that is under way is kept.
func TestPruneNeverCutsARun(t *testing.T) {
	ctx := context.Background()
	db := openDB(t, t.TempDir())
	begin := func(when time.Time) (id int64) {
		t.Helper()
		if err := db.write(ctx, func(tx *txn) (err error) {
			id, err = tx.begin(Run{Origin: self, Operation: OperationScan, Domain: "x"}, when)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return id
	}
	end := func(id int64, when time.Time) {
		t.Helper()
		if err := db.write(ctx, func(tx *txn) error { return tx.end(id, scan(), when) }); err != nil {
			t.Fatal(err)
		}
	}
	old, now := time.Now().Add(-100*24*time.Hour), time.Now()
	limits := Limits{Age: 10 * 24 * time.Hour}
	a := begin(old)
	b := begin(old)
	end(a, old)
	begin(old)  // was cut off
	end(b, now) // ends young: b stays, and c behind it
	p, err := db.Prune(ctx, self, limits)
	if err != nil || p.Records != 0 {
		t.Errorf("%+v, %v: a begins before b and ends behind its beginning", p, err)
	}
	verify(t, db)

	db = openDB(t, t.TempDir())
	a = begin(old)
	end(a, old)
	c := begin(old)                 // was cut off
	d := begin(now.Add(-time.Hour)) // under way
	end(begin(now), now)
	if p, err := db.Prune(ctx, self, limits); err != nil || p.Upto != c {
		t.Errorf("%+v, %v; want up to %d", p, err, c)
	}
	if p, err := db.Prune(ctx, self, Limits{Age: time.Nanosecond}); err != nil || p.Records != 0 {
		t.Errorf("%+v, %v: run %d is under way", p, err, d)
	}
	end(d, now)
	verify(t, db)
}

func TestPruneBySizeShrinksTheFile(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	db := openDB(t, dir)
	for i := range 60 {
		at(t, db, time.Now(), strings.Repeat(string(rune('a'+i%26)), 20000))
	}
	before, err := used(ctx, db.sql)
	if err != nil {
		t.Fatal(err)
	}
	limit := before / 2
	p, err := db.Prune(ctx, self, Limits{Size: limit})
	if err != nil || p.Bytes > limit || p.Bytes < limit/2 {
		t.Errorf("%+v, %v; want at most %d bytes, and not much less", p, err, limit)
	}
	st, err := os.Stat(filepath.Join(dir, fileName))
	if err != nil || st.Size() > limit+1<<16 {
		t.Errorf("the file has %d bytes, %v; want about %d", st.Size(), err, p.Bytes)
	}
	verify(t, db)
	if p, err := db.Prune(ctx, self, Limits{Size: limit}); err != nil || p.Records != 0 {
		t.Errorf("once more: %+v, %v", p, err)
	}
}
