package notify

import (
	"context"
	"fmt"
	"log/syslog"
)

// syslogd is the host's syslog, under the facility daemon.
type syslogd struct{ w *syslog.Writer }

// openSyslog connects to the syslog of a socket; "" is the host's.
func openSyslog(socket string) (*syslogd, error) {
	network := ""
	if socket != "" {
		network = "unixgram"
	}
	w, err := syslog.Dial(network, socket, syslog.LOG_DAEMON|syslog.LOG_INFO, "vmav")
	if err != nil {
		return nil, fmt.Errorf("connect to syslog: %w", err)
	}
	return &syslogd{w}, nil
}

func (*syslogd) name() string   { return "syslog" }
func (*syslogd) log() bool      { return true }
func (s *syslogd) close() error { return s.w.Close() }

func (s *syslogd) send(_ context.Context, e *Event) error {
	switch e.level() {
	case levelError:
		return s.w.Err(e.text())
	case levelWarning:
		return s.w.Warning(e.text())
	}
	return s.w.Info(e.text())
}
