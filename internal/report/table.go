package report

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/mattn/go-runewidth"

	"vmav.dev/vmav/internal/escape"
)

// Format is an output format.
type Format string

// Output formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	JSONL Format = "jsonl"
	CSV   Format = "csv"
)

// ParseFormat returns the format with a name.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case Table, JSON, JSONL, CSV:
		return f, nil
	}
	return "", fmt.Errorf("format %q: known are table, json, jsonl and csv", s)
}

// Column is one column of a list of rows of type T. Text returns the cell of a row; it is
// escaped when it is written.
type Column[T any] struct {
	Title string
	Text  func(T) string
	Right bool // align to the right, for numbers
}

// Rows writes a list in a format: a table with the columns, JSON in T's own encoding (an
// array, or one object per line), or CSV with the columns' titles in lower case.
func Rows[T any](w io.Writer, f Format, rows []T, cols []Column[T]) error {
	switch f {
	case JSON:
		if rows == nil {
			rows = []T{}
		}
		return Document(w, rows)
	case JSONL:
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	case CSV:
		return csvRows(w, rows, cols)
	}
	return tableRows(w, rows, cols)
}

// Document writes one JSON value, indented.
func Document(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func csvRows[T any](w io.Writer, rows []T, cols []Column[T]) error {
	out := csv.NewWriter(w)
	rec := make([]string, len(cols))
	for i, c := range cols {
		rec[i] = strings.ReplaceAll(strings.ToLower(c.Title), " ", "_")
	}
	if err := out.Write(rec); err != nil {
		return err
	}
	for _, r := range rows {
		for i, c := range cols {
			rec[i] = escape.Text(c.Text(r))
		}
		if err := out.Write(rec); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

func tableRows[T any](w io.Writer, rows []T, cols []Column[T]) error {
	cells := make([][]string, 0, len(rows)+1)
	head := make([]string, len(cols))
	width := make([]int, len(cols))
	for i, c := range cols {
		head[i] = c.Title
		width[i] = runewidth.StringWidth(c.Title)
	}
	cells = append(cells, head)
	for _, r := range rows {
		line := make([]string, len(cols))
		for i, c := range cols {
			line[i] = escape.Text(c.Text(r))
			width[i] = max(width[i], runewidth.StringWidth(line[i]))
		}
		cells = append(cells, line)
	}
	for _, line := range cells {
		var b strings.Builder
		for i, cell := range line {
			pad := strings.Repeat(" ", width[i]-runewidth.StringWidth(cell))
			switch {
			case cols[i].Right:
				b.WriteString(" " + pad + cell)
			case i == len(line)-1:
				b.WriteString(" " + cell)
			default:
				b.WriteString(" " + cell + pad)
			}
			b.WriteString(" ")
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}
