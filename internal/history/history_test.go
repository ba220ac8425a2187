package history

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

var self = Origin{Trigger: TriggerCLI, Who: Who{UID: 1000, User: "ann"}, Command: "vmav scan win10"}

func openDB(t testing.TB, dir string) *DB {
	t.Helper()
	db, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func found(pid uint64, signature string) finding.Finding {
	return finding.Finding{Kind: finding.KindSignature, Domain: "win10", PID: pid, Process: "malware.exe", Image: `C:\Temp\malware.exe`, Base: 0x140000000,
		Size: 0x8000, Signature: signature, SHA256: strings.Repeat("ab", 32), Hashes: &finding.Hashes{ImportHash: "x"},
		Fidelity: finding.Fidelity{Form: finding.FormFile, Coverage: 1, Exact: true, Base: "checksum"},
		Verdict:  verdict.Verdict{Action: verdict.Report, Reason: "policy"}, Action: verdict.Report, Outcome: finding.Outcome{Code: "reported"}}
}

func scan(f ...finding.Finding) *finding.Scan {
	return &finding.Scan{Name: "win10", UUID: "6f0d9c1a-0000-4000-8000-000000000001", State: "running", Status: finding.StatusScanned, Build: "10.0.19041",
		Processes: 45, Images: 153, Files: 44, Bytes: 12345678, Findings: f, Errors: []finding.Unread{}, Timing: finding.Timing{Total: 1.5}}
}

// recordScan records the finished scan of one domain, and returns the number of its record.
func recordScan(ctx context.Context, db *DB, e *finding.Engine, d *finding.Scan) (int64, error) {
	r, err := db.Begin(ctx, Run{Origin: self, Operation: OperationScan, Domain: d.Name, UUID: d.UUID, Engine: e})
	if err != nil {
		return 0, err
	}
	return r.ID(), r.End(ctx, d)
}

func killed(pid uint64) *finding.Kill {
	status, dead := finding.NTStatus(0xC0000906), finding.Milliseconds(40123*time.Microsecond)
	return &finding.Kill{Domain: "win10", Target: finding.Process{PID: pid, Name: "malware.exe"}, Outcome: finding.Outcome{Code: finding.OutcomeKilled},
		Method: finding.MethodDirect, Requested: time.Now().UTC(), Dead: &dead, ExitStatus: &status}
}

func verify(t testing.TB, db *DB) Verified {
	t.Helper()
	v, err := db.Verify(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestARecordedScanIsReadBackWhole(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "state")
	db := openDB(t, dir)
	d := scan(found(2552, "Vmav.Test.Malware"), found(2560, "Other"))
	d.Findings[1].Verdict.Action, d.Findings[1].Action, d.Findings[1].Outcome = verdict.Kill, verdict.Kill, finding.Outcome{Code: "killed"}
	d.Kills = []*finding.Kill{killed(2560)}
	want := append([]finding.Finding{}, d.Findings...)
	e := &finding.Engine{Version: "ClamAV 1.4.6", Database: "27000"}
	id, err := recordScan(ctx, db, e, d)
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	db = openDB(t, dir) // another process
	all, err := db.Entries(ctx, Filter{})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	for i, got := range []Entry{all[1], all[0]} {
		if got.ID == 0 || got.ID != d.Findings[i].ID || got.Scan != id || got.UUID != d.UUID || got.Trigger != TriggerCLI {
			t.Errorf("%+v, want id %d of scan %d", got, d.Findings[i].ID, id)
		}
		got.Finding.ID = 0
		if !reflect.DeepEqual(got.Finding, want[i]) {
			t.Errorf("got  %+v\nwant %+v", got.Finding, want[i])
		}
	}
	s, err := db.Scan(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if s.Origin != self || s.Status != finding.StatusScanned || s.Findings != 2 || !reflect.DeepEqual(s.Engine, e) || s.Ended == nil ||
		s.Ended.Before(s.Began) {
		t.Errorf("%+v", s)
	}
	if got := s.Result; got.Bytes != d.Bytes || got.Images != d.Images || got.Timing != d.Timing || got.Build != d.Build || len(got.Findings) != 0 {
		t.Errorf("%+v", got)
	}
	verify(t, db)
	var synchronous int
	var journal string
	if err := db.sql.QueryRow("SELECT synchronous, journal_mode FROM pragma_synchronous, pragma_journal_mode").Scan(&synchronous, &journal); err != nil ||
		synchronous != 2 || journal != "wal" {
		t.Errorf("synchronous=%d, journal %s, %v; want FULL (2) and wal", synchronous, journal, err)
	}
	for name, mode := range map[string]fs.FileMode{"": 0o700, fileName: 0o600, keyName: 0o600} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%q: %v, %v; want mode %o", name, st.Mode(), err, mode)
		}
	}
}

// A finding's state goes from decided over requested to its outcome, each recorded when
// it comes about, so that a run that is cut off says how far it got.
func TestStatesOfAnAction(t *testing.T) {
	ctx := context.Background()
	db := openDB(t, t.TempDir())
	r, err := db.Begin(ctx, Run{Origin: self, Operation: OperationScan, Domain: "win10"})
	if err != nil {
		t.Fatal(err)
	}
	f := found(2552, "Vmav.Test.Malware")
	f.Verdict.Action = verdict.Kill
	state := func() string {
		t.Helper()
		all, err := db.Entries(ctx, Filter{})
		if err != nil || len(all) != 1 {
			t.Fatalf("%d entries, %v", len(all), err)
		}
		return string(all[0].Action) + " " + all[0].Text()
	}
	var got []string
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, state())
	}
	step(r.Found(ctx, &f))
	step(r.Acting(ctx, verdict.Kill, f.ID))
	if s, err := db.Scan(ctx, r.ID()); err != nil || s.Status != StatusRunning || s.Ended != nil {
		t.Errorf("%+v, %v", s, err)
	}
	step(r.Acted(ctx, verdict.Kill, finding.Outcome{Code: finding.OutcomeKilled}, killed(2552), nil, f.ID))
	f.Action, f.Outcome = verdict.Kill, finding.Outcome{Code: "killed"}
	before := verify(t, db).Records
	d := scan(f)
	step(r.End(ctx, d))
	if n := verify(t, db).Records - before; n != 1 {
		t.Errorf("the end of a run that was recorded as it went made %d records, want 1", n)
	}
	want := []string{"kill decided", "kill requested", "kill killed", "kill killed"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	detail, err := db.Show(ctx, f.ID)
	if err != nil || len(detail.Steps) != 2 || detail.Steps[1].Kill == nil || *detail.Steps[1].Kill.ExitStatus != 0xC0000906 ||
		*detail.Steps[1].Kill.Dead != finding.Milliseconds(40123*time.Microsecond) {
		t.Errorf("%+v, %v", detail, err)
	}
}

// Findings and outcomes that nobody recorded on the way are recorded by the end.
func TestTheEndRecordsWhatIsNot(t *testing.T) {
	ctx := context.Background()
	db := openDB(t, t.TempDir())
	r, err := db.Begin(ctx, Run{Origin: self, Operation: OperationScan, Domain: "win10"})
	if err != nil {
		t.Fatal(err)
	}
	a, b := found(8, "A"), found(12, "B")
	if err := r.Found(ctx, &a); err != nil {
		t.Fatal(err)
	}
	a.Action, a.Outcome = verdict.Kill, finding.Outcome{Code: "failed", Reason: "the guest went away"}
	d := scan(a, b)
	for range maxErrors + 7 {
		d.Errors = append(d.Errors, finding.Unread{What: "w", Error: "e"})
	}
	if err := r.End(ctx, d); err != nil {
		t.Fatal(err)
	}
	for outcome, want := range map[finding.Code]string{"failed": "A", "reported": "B", "fail": "", "failed: the guest went away": ""} {
		got, err := db.Entries(ctx, Filter{Outcome: outcome})
		if err != nil || len(got) > 1 || (len(got) == 1) != (want != "") || len(got) == 1 && got[0].Signature != want {
			t.Errorf("outcome %s: %+v, %v; want %q", outcome, got, err, want)
		}
	}
	if s, err := db.Scan(ctx, r.ID()); err != nil || len(s.Result.Errors) != maxErrors || s.Omitted != 7 || len(d.Errors) != maxErrors+7 {
		t.Errorf("%d errors and %d omitted, %v", len(s.Result.Errors), s.Omitted, err)
	}
	verify(t, db)
}

func TestFilters(t *testing.T) {
	ctx := context.Background()
	db := openDB(t, t.TempDir())
	for i, name := range []string{"win10", "win11", "win10"} {
		d := scan(found(uint64(4*i+8), "Win.Trojan["+name+"]"), found(uint64(4*i+80), "Vmav.Modified.Code"))
		d.Name, d.UUID = name, "6f0d9c1a-0000-4000-8000-00000000ABC"+string(rune('0'+i))
		for j := range d.Findings {
			d.Findings[j].Domain = name
		}
		if _, err := recordScan(ctx, db, nil, d); err != nil {
			t.Fatal(err)
		}
	}
	middle := time.Now()
	if _, err := recordScan(ctx, db, nil, scan(found(4000, "Late"))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		f    Filter
		want int
	}{
		{Filter{}, 7}, {Filter{Domain: "win10"}, 5}, {Filter{Domain: "6f0d9c1a-0000-4000-8000-00000000abc1"}, 2}, {Filter{Domain: "win"}, 0},
		{Filter{Signature: "Win.Trojan*"}, 3}, {Filter{Signature: "Win.Trojan[win1?]"}, 0}, {Filter{Signature: "*[win10]"}, 2}, {Filter{Signature: "Late"}, 1},
		{Filter{Action: "kill"}, 0}, {Filter{Action: "report"}, 7}, {Filter{Outcome: "reported"}, 7},
		{Filter{Since: middle}, 1}, {Filter{Until: middle}, 6}, {Filter{Limit: 3}, 3}, {Filter{Domain: "win10", Signature: "Vmav.*", Limit: 1}, 1},
	} {
		got, err := db.Entries(ctx, c.f)
		if err != nil || len(got) != c.want {
			t.Errorf("%+v: %d entries, %v; want %d", c.f, len(got), err, c.want)
		}
	}
	if got, err := db.Scans(ctx, Filter{Domain: "win10", Limit: 2}); err != nil || len(got) != 2 || got[0].ID <= got[1].ID {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := db.Show(ctx, 1000); !errors.Is(err, ErrNoRecord) {
		t.Errorf("a record that is not there: %v", err)
	}
}

func TestWhatIsNotAHistoryIsRefused(t *testing.T) {
	if _, err := OpenExisting(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory without one: %v", err)
	}
	for name, c := range map[string]struct {
		do   func(dir string) error
		want string
	}{
		"no key":         {func(dir string) error { return os.Remove(filepath.Join(dir, keyName)) }, "is gone"},
		"short key":      {func(dir string) error { return os.WriteFile(filepath.Join(dir, keyName), []byte("x"), 0o600) }, "not of 32 bytes"},
		"key for all":    {func(dir string) error { return os.Chmod(filepath.Join(dir, keyName), 0o644) }, "0600"},
		"not a database": {func(dir string) error { return os.WriteFile(filepath.Join(dir, fileName), make([]byte, 4096), 0o600) }, "not a database"},
		"a newer one":    {func(dir string) error { return raw(dir, "PRAGMA user_version=1000") }, "newer vmav"},
	} {
		dir := t.TempDir()
		db, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		db.Close()
		if err := c.do(dir); err != nil {
			t.Fatal(err)
		}
		if db, err := Open(dir); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), filepath.Join(dir, fileName)) {
			t.Errorf("%s: %v; want it to name the file and say %q", name, err, c.want)
			if db != nil {
				db.Close()
			}
		}
	}
}

// The tables that queries read are derived anew when their version changes.
func TestDerivedTablesAreMadeAnewFromAnOlderVersion(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	db := openDB(t, dir)
	if _, err := recordScan(ctx, db, nil, scan(found(8, "A"))); err != nil {
		t.Fatal(err)
	}
	head := verify(t, db).Head
	db.Close()
	if err := raw(dir, "DROP TABLE entries", "CREATE TABLE entries (old TEXT)", "DROP TABLE steps", "PRAGMA user_version=0"); err != nil {
		t.Fatal(err)
	}
	db = openDB(t, dir)
	if got, err := db.Entries(ctx, Filter{}); err != nil || len(got) != 1 || got[0].Signature != "A" {
		t.Errorf("%+v, %v", got, err)
	}
	if got := verify(t, db).Head; got.String() != head.String() {
		t.Errorf("the head is %s, want %s", got, head)
	}
}

// Findings of one run are recorded by several at once.
func TestFindingsOfOneRunAtOnce(t *testing.T) {
	ctx := context.Background()
	db := openDB(t, t.TempDir())
	r, err := db.Begin(ctx, Run{Origin: self, Operation: OperationScan, Domain: "win10"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	d := scan(found(8, "A"), found(12, "B"), found(16, "C"))
	for i := range d.Findings {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := r.Found(ctx, &d.Findings[i]); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if err := r.End(ctx, d); err != nil {
		t.Fatal(err)
	}
	runs, err := db.Scans(ctx, Filter{})
	if err != nil || len(runs) != 1 || runs[0].ID != r.ID() || runs[0].Findings != 3 {
		t.Errorf("%+v, %v", runs, err)
	}
	if v := verify(t, db); v.Records != 5 {
		t.Errorf("%d records, want a beginning, 3 findings and an end", v.Records)
	}
}

// Records of a time when an outcome was one text read as its code and its reason.
func TestOldOutcomesAreSeparated(t *testing.T) {
	ctx := context.Background()
	db := openDB(t, t.TempDir())
	r, err := db.Begin(ctx, Run{Origin: self, Operation: OperationScan, Domain: "win10"})
	if err != nil {
		t.Fatal(err)
	}
	f := found(8, "A")
	if err := r.Found(ctx, &f); err != nil {
		t.Fatal(err)
	}
	old := map[string]any{"state": StateOutcome, "action": verdict.Kill, "entries": []int64{f.ID}, "outcome": "refused: it is critical: no"}
	if err := r.write(ctx, func(tx *txn, run int64) error {
		_, err := tx.append(kindAction, run, time.Now(), old)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := finding.Outcome{Code: finding.OutcomeRefused, Reason: "it is critical: no"}
	got, err := db.Entries(ctx, Filter{Outcome: finding.OutcomeRefused})
	if err != nil || len(got) != 1 || got[0].Outcome != want {
		t.Errorf("entries: %+v, %v; want the outcome %+v", got, err, want)
	}
	d, err := db.Show(ctx, f.ID)
	if err != nil || len(d.Steps) != 1 || d.Steps[0].Outcome == nil || *d.Steps[0].Outcome != want {
		t.Errorf("detail: %+v, %v; want the outcome %+v", d, err, want)
	}
}
