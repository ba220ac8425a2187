package history

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// Step is a state that an action for an entry has reached.
type Step struct {
	Time time.Time `json:"time"`
	actionBody
}

// Detail is everything that is known of an entry.
type Detail struct {
	Entry
	// Record is the finding as it was recorded with its verdict. It has all fields,
	// also those that this vmav does not know.
	Record json.RawMessage `json:"record"`
	Steps  []Step          `json:"steps"`
	Run    Scan            `json:"run"`
}

// Show returns everything that is known of the entry with an ID. If there is none, the
// error wraps ErrNoRecord.
func (db *DB) Show(ctx context.Context, id int64) (Detail, error) {
	d := Detail{Steps: []Step{}}
	var q query
	q.where("e.id = ?", id)
	all, err := db.entries(ctx, q, 1)
	if err != nil {
		return d, err
	}
	if len(all) == 0 {
		return d, fmt.Errorf("finding %d: %w", id, ErrNoRecord)
	}
	d.Entry = all[0]
	var body string
	if err := db.sql.QueryRowContext(ctx, "SELECT body FROM log WHERE seq = ?", id).Scan(&body); err != nil {
		return d, fmt.Errorf("read finding %d: %w", id, err)
	}
	d.Record = json.RawMessage(body)
	rows, err := db.sql.QueryContext(ctx, "SELECT l.at, l.body FROM steps s JOIN log l ON l.seq = s.seq WHERE s.entry = ? ORDER BY s.seq", id)
	if err != nil {
		return d, fmt.Errorf("read finding %d: %w", id, err)
	}
	defer rows.Close()
	for rows.Next() {
		var s Step
		var at int64
		err := rows.Scan(&at, &body)
		if err == nil {
			err = json.Unmarshal([]byte(body), &s.actionBody)
		}
		if err != nil {
			return d, fmt.Errorf("read finding %d: %w", id, err)
		}
		if s.Outcome != nil {
			*s.Outcome = separate(*s.Outcome)
		}
		s.Time = time.Unix(0, at).UTC()
		d.Steps = append(d.Steps, s)
	}
	if err := rows.Err(); err != nil {
		return d, fmt.Errorf("read finding %d: %w", id, err)
	}
	d.Run, err = db.Scan(ctx, d.Entry.Scan)
	return d, err
}
