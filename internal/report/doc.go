// Package report turns results into text: tables for people, JSON, JSONL and CSV for
// programs, lines like clamscan's for findings. It writes to the writer it is given
// and knows no guest.
//
// Names and paths come from guests, which are hostile. Everything that reaches a
// terminal goes through Escape first; JSON carries the text as it is, encoded.
package report
