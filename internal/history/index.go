package history

import (
	"encoding/json"
	"fmt"
	"strings"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

// indexVersion is the version of the derived tables. Every change of index or apply
// raises it. Then the tables are derived again.
const indexVersion = 2

// Kinds of records.
const (
	kindBegin   = "begin"   // of a run: a scan of one domain, or a kill by hand
	kindFinding = "finding" // a finding.Finding as it was decided on
	kindKill    = "kill"    // a kill that somebody asked for without a finding
	kindAction  = "action"  // an action for findings has reached another state
	kindEnd     = "end"     // of a run
	kindPrune   = "prune"   // older records were removed
)

// index is the schema of the derived tables; %s is the database they are in. Times are
// nanoseconds since 1970.
const index = `
DROP TABLE IF EXISTS %[1]s.scans;
DROP TABLE IF EXISTS %[1]s.entries;
DROP TABLE IF EXISTS %[1]s.steps;
CREATE TABLE %[1]s.scans (
	id INTEGER PRIMARY KEY, operation TEXT NOT NULL, began INTEGER NOT NULL, ended INTEGER,
	domain TEXT NOT NULL, uuid TEXT NOT NULL, trigger TEXT NOT NULL, status TEXT NOT NULL, findings INTEGER NOT NULL
);
CREATE TABLE %[1]s.entries (
	id INTEGER PRIMARY KEY, scan INTEGER NOT NULL, at INTEGER NOT NULL, domain TEXT NOT NULL, uuid TEXT NOT NULL,
	signature TEXT NOT NULL, sha256 TEXT NOT NULL, action TEXT NOT NULL, outcome TEXT NOT NULL,
	reason TEXT NOT NULL
);
CREATE TABLE %[1]s.steps (seq INTEGER NOT NULL, entry INTEGER NOT NULL, PRIMARY KEY (entry, seq)) WITHOUT ROWID;
CREATE INDEX %[1]s.entries_at ON entries (at);
CREATE INDEX %[1]s.entries_domain ON entries (domain, at);
CREATE INDEX %[1]s.entries_scan ON entries (scan);
CREATE INDEX %[1]s.scans_began ON scans (began);
`

// derived are the tables of index. id is the column with the number of the record that a
// row is derived from.
var derived = []struct{ table, id string }{{"scans", "id"}, {"entries", "id"}, {"steps", "entry"}}

// derive makes the derived tables of a database from the log.
func (t *txn) derive(schema string) error {
	if _, err := t.ExecContext(t.ctx, fmt.Sprintf(index, schema)); err != nil {
		return err
	}
	return t.each(0, func(r *row) error {
		if err := t.apply(schema, r); err != nil {
			return fmt.Errorf("record %d: %w", r.seq, err)
		}
		return nil
	})
}

// Operations of a run.
const (
	OperationScan = "scan"
	OperationKill = "kill"
)

// StatusRunning is the status of a run that has not ended, or was cut off.
const StatusRunning = "unfinished"

// beginBody is the content of kindBegin.
type beginBody struct {
	Operation string          `json:"operation"`
	Origin    Origin          `json:"origin"`
	Domain    string          `json:"domain"`
	UUID      string          `json:"uuid,omitempty"`
	Engine    *finding.Engine `json:"engine,omitempty"`
}

// States of an action, in order. The record of the finding is the state "decided".
const (
	StateDecided   = "decided"
	StateRequested = "requested"
	StateOutcome   = "outcome"
)

// actionBody is the content of kindAction.
type actionBody struct {
	State            string         `json:"state"`
	Action           verdict.Action `json:"action"`
	Entries          []int64        `json:"entries"`
	*finding.Outcome                // of StateOutcome
	Kill             *finding.Kill  `json:"kill,omitempty"`
	Act              *finding.Act   `json:"act,omitempty"`
}

// separate is an outcome with code and reason apart. Records that were written before
// these were two members have one text for both, "code: reason".
func separate(o finding.Outcome) finding.Outcome {
	if code, reason, both := strings.Cut(string(o.Code), ": "); both && o.Reason == "" {
		return finding.Outcome{Code: finding.Code(code), Reason: reason}
	}
	return o
}

// killBody is the content of kindKill.
type killBody struct {
	Process finding.Process `json:"process"`
	DryRun  bool            `json:"dry_run,omitempty"`
}

// apply adds a record to the derived tables. It reads nothing but the record and them.
func (t *txn) apply(schema string, r *row) error {
	exec := func(query string, args ...any) error {
		_, err := t.ExecContext(t.ctx, fmt.Sprintf(query, schema), args...)
		return err
	}
	switch r.kind {
	case kindBegin:
		var b beginBody
		if err := json.Unmarshal([]byte(r.body), &b); err != nil {
			return err
		}
		return exec("INSERT INTO %s.scans VALUES (?, ?, ?, NULL, ?, ?, ?, ?, 0)", r.seq, b.Operation, r.at, b.Domain, b.UUID, b.Origin.Trigger, StatusRunning)
	case kindFinding:
		var f finding.Finding
		if err := json.Unmarshal([]byte(r.body), &f); err != nil {
			return err
		}
		action, outcome := f.Verdict.Action, finding.Outcome{Code: StateDecided}
		if action == verdict.Report {
			outcome = separate(f.Outcome)
		}
		if err := exec("UPDATE %s.scans SET findings = findings + 1 WHERE id = ?", r.scan); err != nil {
			return err
		}
		return exec("INSERT INTO %[1]s.entries SELECT ?, ?, ?, ?, uuid, ?, ?, ?, ?, ? FROM %[1]s.scans WHERE id = ?2",
			r.seq, r.scan, r.at, f.Domain, f.Signature, f.SHA256, string(action), string(outcome.Code), outcome.Reason)
	case kindKill:
		return exec("INSERT INTO %[1]s.entries SELECT ?, ?, ?, domain, uuid, '', '', ?, ?, '' FROM %[1]s.scans WHERE id = ?2",
			r.seq, r.scan, r.at, string(verdict.Kill), StateDecided)
	case kindAction:
		var b actionBody
		if err := json.Unmarshal([]byte(r.body), &b); err != nil {
			return err
		}
		outcome := finding.Outcome{Code: finding.Code(b.State)}
		if b.State == StateOutcome && b.Outcome != nil {
			outcome = separate(*b.Outcome)
		}
		for _, id := range b.Entries {
			if err := exec("INSERT OR IGNORE INTO %s.steps VALUES (?, ?)", r.seq, id); err != nil {
				return err
			}
			if err := exec("UPDATE %s.entries SET action = ?, outcome = ?, reason = ? WHERE id = ?",
				string(b.Action), string(outcome.Code), outcome.Reason, id); err != nil {
				return err
			}
		}
	case kindEnd:
		var d endBody
		if err := json.Unmarshal([]byte(r.body), &d); err != nil {
			return err
		}
		return exec("UPDATE %s.scans SET ended = ?, status = ? WHERE id = ?", r.at, d.Status, r.scan)
	}
	return nil // a kind of a newer vmav, or one that no query needs
}
