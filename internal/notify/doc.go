// Package notify tells others what was found and what came of it: systemd's journal,
// syslog, a command, a webhook, and metrics for Prometheus.
//
// Each of them has a queue of bounded length and a goroutine of its own, so that one
// that is slow or gone costs a sweep nothing and the others nothing. Nothing is kept
// for later: what a queue cannot take and what is not delivered by the end is counted,
// and the count is an error. Records that must last are internal/history's.
//
// What comes from a guest is escaped before it gets into a log, and bounded in length.
package notify
