package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// raw changes the database as somebody would who can write the file and has no key.
func raw(dir string, statements ...string) error {
	db, err := sql.Open("sqlite3", filepath.Join(dir, fileName))
	if err != nil {
		return err
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// Whatever is changed, Verify names the first record where something is wrong.
func TestVerifyNamesTheFirstBrokenRecord(t *testing.T) {
	ctx := context.Background()
	for statement, want := range map[string]string{
		"UPDATE log SET body = replace(body, 'Sig.6', 'Sig.7') WHERE seq = 6":                      "record 6 (finding",
		"UPDATE log SET at = at + 1 WHERE seq IN (5, 9)":                                           "record 5 (finding",
		"UPDATE log SET scan = 3 WHERE seq = 8":                                                    "record 8 (finding",
		"UPDATE log SET kind = 'note' WHERE seq = 8":                                               "record 8 (note",
		"UPDATE log SET mac = zeroblob(32) WHERE seq = 3":                                          "record 3 (begin",
		"UPDATE log SET mac = (SELECT mac FROM log WHERE seq = 4) WHERE seq = 5":                   "record 5 (finding",
		"DELETE FROM log WHERE seq = 7":                                                            "record 7 is missing",
		"DELETE FROM log WHERE seq >= 11":                                                          "record 11 is missing, and all behind it up to 12",
		"DELETE FROM log WHERE seq <= 2":                                                           "record 1 is missing",
		"DELETE FROM log":                                                                          "record 1 is missing, and all behind it up to 12",
		"INSERT INTO log SELECT 13, at, scan, kind, body, mac FROM log WHERE seq = 12":             "record 13 (end",
		"UPDATE meta SET seq = 11, mac = (SELECT mac FROM log WHERE seq = 11) WHERE name = 'head'": `its mark "head" at record 11`,
		"UPDATE meta SET seq = 3, mac = (SELECT mac FROM log WHERE seq = 3) WHERE name = 'base'":   `its mark "base" at record 3`,
		"DELETE FROM meta WHERE name = 'head'":                                                     `its mark "head"`,
		"UPDATE entries SET signature = 'harmless' WHERE id = 8":                                   "the table entries says of record 8",
		"DELETE FROM entries WHERE id = 6":                                                         "the table entries says of record 6",
		"UPDATE scans SET status = 'scanned', domain = 'x' WHERE id = 4":                           "the table scans says of record 4",
		"INSERT INTO steps VALUES (9, 8)":                                                          "the table steps says of record 8",
		"UPDATE scans SET findings = 0":                                                            "the table scans says of record 4",
	} {
		dir := t.TempDir()
		db := openDB(t, dir)
		// A scan without findings, one that was cut off, one with seven findings.
		if _, err := recordScan(ctx, db, nil, scan()); err != nil {
			t.Fatal(err)
		}
		var r *Recorder
		for range 2 {
			var err error
			if r, err = db.Begin(ctx, Run{Origin: self, Operation: OperationScan, Domain: "win10"}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 7 {
			f := found(uint64(4*i+8), fmt.Sprintf("Sig.%d", i+5))
			if err := r.Found(ctx, &f); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.End(ctx, scan()); err != nil {
			t.Fatal(err)
		}
		if v := verify(t, db); v.Records != 12 || v.First != 1 {
			t.Fatalf("%+v", v)
		}
		if err := raw(dir, statement); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Verify(ctx, nil); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", statement, err, want)
		}
	}
}

// An older copy of all files is a whole history. What tells is a head that was noted.
func TestANotedHeadTellsOfAnOlderCopy(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	db := openDB(t, dir)
	add := func() {
		t.Helper()
		if _, err := recordScan(ctx, db, nil, scan(found(8, "A"))); err != nil {
			t.Fatal(err)
		}
	}
	add()
	db.Close() // all is in the one file now
	older, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	db = openDB(t, dir)
	add()
	noted, err := db.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if noted, err = ParseHead(noted.String()); err != nil {
		t.Fatal(err)
	}
	add()
	if _, err := db.Verify(ctx, &noted); err != nil {
		t.Error(err)
	}
	db.Close()
	if err := os.WriteFile(filepath.Join(dir, fileName), older, 0o600); err != nil {
		t.Fatal(err)
	}
	db = openDB(t, dir)
	verify(t, db)
	if _, err := db.Verify(ctx, &noted); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "older copy") {
		t.Errorf("an older copy: %v", err)
	}
	add()
	if _, err := db.Verify(ctx, &noted); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "not the one that was noted") {
		t.Errorf("an older copy that went on: %v", err)
	}
	for _, s := range []string{"", "7", "7:", "7:00", "x:" + noted.String(), noted.String() + "0", "-" + noted.String()[1:] + " "} {
		if h, err := ParseHead(s); err == nil {
			t.Errorf("%q is the head %v", s, h)
		}
	}
}
