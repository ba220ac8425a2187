// Package report turns results into text: tables for people, JSON, JSONL and CSV for
// programs, and lines like clamscan's for findings. It writes to the writer it is given and
// knows no guest.
//
// Names and paths come from guests, which are hostile. Text that can reach a terminal is
// escaped first (escape.Text). JSON carries the text unchanged, in JSON's own encoding.
package report
