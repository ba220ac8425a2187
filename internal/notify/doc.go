// Package notify tells others what was found and what was done about it. It tells
// systemd's journal, syslog, a command and a webhook, and it writes metrics for
// Prometheus.
//
// Each receiver has its own goroutine and its own queue of bounded length. So a receiver
// that is slow or gone delays neither a sweep nor the other receivers. Nothing is kept
// for later. Events that do not fit into a queue, and events that are not delivered at
// the end, are counted, and the count is an error. What must last is recorded by
// internal/history.
//
// Text from a guest is bounded in length, and escaped before it gets into a log.
package notify
