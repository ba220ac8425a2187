package history

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

// Filter chooses records. An empty field chooses all.
type Filter struct {
	Domain       string // name or UUID
	Since, Until time.Time
	Signature    string // "*" matches any text
	Action       string
	Outcome      finding.Code
	SHA256       string // of what was scanned, of the evidence, or of the file in the guest's cache
	Limit        int    // the newest; 0 for all
}

// Entry is a finding or a kill by hand, with its latest state.
type Entry struct {
	Time    time.Time `json:"time"`
	Scan    int64     `json:"scan"` // number of the run's record
	UUID    string    `json:"uuid,omitempty"`
	Trigger string    `json:"trigger"`
	finding.Finding
}

// KindKill is the kind of an Entry that is a kill by hand.
const KindKill = "kill"

// Scan is one run over one domain.
type Scan struct {
	ID        int64      `json:"id"`
	Operation string     `json:"operation"`
	Began     time.Time  `json:"began"`
	Ended     *time.Time `json:"ended"` // nil while the run is under way, or if it was cut off
	Domain    string     `json:"domain"`
	UUID      string     `json:"uuid,omitempty"`
	Origin
	Status   string          `json:"status"`
	Findings int             `json:"findings"`
	Engine   *finding.Engine `json:"engine,omitempty"`
	Result   *finding.Scan   `json:"result,omitempty"` // without its findings
	// Omitted is the number of errors of the result that were not kept.
	Omitted int `json:"errors_omitted,omitempty"`
}

// Entries returns findings and kills by hand, newest first.
func (db *DB) Entries(ctx context.Context, f Filter) ([]Entry, error) {
	var q query
	q.common("e.", "e.at", f)
	if f.Signature != "" {
		if strings.Contains(f.Signature, "*") {
			// GLOB has more special characters than this one.
			q.where("e.signature GLOB ?", strings.NewReplacer("[", "[[]", "?", "[?]").Replace(f.Signature))
		} else {
			q.where("e.signature = ?", f.Signature)
		}
	}
	if f.Action != "" {
		q.where("e.action = ?", f.Action)
	}
	if f.Outcome != "" {
		q.where("e.outcome = ?", string(f.Outcome))
	}
	if f.SHA256 != "" {
		q.where("(e.sha256 = ? OR instr(l.body, ?) > 0)", f.SHA256, `"`+f.SHA256+`"`)
	}
	return db.entries(ctx, q, f.Limit)
}

// entries returns the entries that a query chooses, newest first.
func (db *DB) entries(ctx context.Context, q query, n int) ([]Entry, error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT e.id, e.scan, e.at, e.domain, e.uuid, e.action, e.outcome, e.reason, s.trigger, l.kind, l.body
		FROM entries e JOIN log l ON l.seq = e.id JOIN scans s ON s.id = e.scan`+q.text()+" ORDER BY e.id DESC"+limit(n), q.args...)
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	defer rows.Close()
	var out []Entry
	for rows.Next() {
		e, err := entryOf(rows)
		if err != nil {
			return nil, fmt.Errorf("read history: %w", err)
		}
		out = append(out, e)
	}
	return out, rows.Err()
}

// entryOf reads a row of the query of Entries.
func entryOf(rows *sql.Rows) (Entry, error) {
	var e Entry
	var id, at int64
	var domain, action, kind, body string
	var o finding.Outcome
	if err := rows.Scan(&id, &e.Scan, &at, &domain, &e.UUID, &action, &o.Code, &o.Reason, &e.Trigger, &kind, &body); err != nil {
		return e, err
	}
	if kind == kindKill {
		var k killBody
		if err := json.Unmarshal([]byte(body), &k); err != nil {
			return e, fmt.Errorf("record %d: %w", id, err)
		}
		e.Kind, e.PID, e.Process, e.Image = KindKill, k.Process.PID, k.Process.Name, k.Process.Path
		e.Verdict = verdict.Verdict{Action: verdict.Kill, Reason: "asked for by hand"}
	} else if err := json.Unmarshal([]byte(body), &e.Finding); err != nil {
		return e, fmt.Errorf("record %d: %w", id, err)
	}
	e.ID, e.Time, e.Domain = id, time.Unix(0, at).UTC(), domain
	e.Action, e.Outcome = verdict.Action(action), o
	return e, nil
}

// Scans returns the runs, newest first. The filter's fields for findings must be empty.
func (db *DB) Scans(ctx context.Context, f Filter) ([]Scan, error) {
	var q query
	q.common("", "began", f)
	rows, err := db.sql.QueryContext(ctx, "SELECT id FROM scans"+q.text()+" ORDER BY id DESC"+limit(f.Limit), q.args...)
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("read history: %w", err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	out := make([]Scan, 0, len(ids))
	for _, id := range ids {
		s, err := db.Scan(ctx, id)
		if errors.Is(err, ErrNoRecord) {
			continue // pruned meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// Scan returns one run.
func (db *DB) Scan(ctx context.Context, id int64) (Scan, error) {
	s := Scan{ID: id}
	var began int64
	var ended sql.NullInt64
	var begin string
	var end sql.NullString
	err := db.sql.QueryRowContext(ctx, `SELECT s.operation, s.began, s.ended, s.domain, s.uuid, s.status, s.findings, l.body,
			(SELECT body FROM log WHERE scan = s.id AND kind = 'end' ORDER BY seq DESC LIMIT 1)
		FROM scans s JOIN log l ON l.seq = s.id WHERE s.id = ?`, id).
		Scan(&s.Operation, &began, &ended, &s.Domain, &s.UUID, &s.Status, &s.Findings, &begin, &end)
	if errors.Is(err, sql.ErrNoRows) {
		return s, fmt.Errorf("scan %d: %w", id, ErrNoRecord)
	}
	if err != nil {
		return s, fmt.Errorf("read scan %d: %w", id, err)
	}
	s.Began = time.Unix(0, began).UTC()
	if ended.Valid {
		t := time.Unix(0, ended.Int64).UTC()
		s.Ended = &t
	}
	var b beginBody
	if err := json.Unmarshal([]byte(begin), &b); err != nil {
		return s, fmt.Errorf("read scan %d: %w", id, err)
	}
	s.Origin, s.Engine = b.Origin, b.Engine
	if end.Valid {
		var e endBody
		if err := json.Unmarshal([]byte(end.String), &e); err != nil {
			return s, fmt.Errorf("read scan %d: %w", id, err)
		}
		e.Findings = []finding.Finding{}
		s.Result, s.Omitted = &e.Scan, e.Omitted
	}
	return s, nil
}

// query collects conditions.
type query struct {
	conditions []string
	args       []any
}

func (q *query) where(condition string, args ...any) {
	q.conditions = append(q.conditions, condition)
	q.args = append(q.args, args...)
}

// common adds the conditions that entries and scans share. at is the column with the
// time.
func (q *query) common(prefix, at string, f Filter) {
	if f.Domain != "" {
		q.where("("+prefix+"domain = ? OR "+prefix+"uuid = ? COLLATE NOCASE)", f.Domain, f.Domain)
	}
	if !f.Since.IsZero() {
		q.where(at+" >= ?", f.Since.UnixNano())
	}
	if !f.Until.IsZero() {
		q.where(at+" < ?", f.Until.UnixNano())
	}
}

func (q *query) text() string {
	if len(q.conditions) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(q.conditions, " AND ")
}

func limit(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(" LIMIT %d", n)
}
