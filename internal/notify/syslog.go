package notify

import (
	"context"
	"log/syslog"
)

// syslogd is the host's syslog, under the facility daemon.
type syslogd struct {
	socket string         // "" for the host's
	w      *syslog.Writer // nil until the first event
}

// connect connects to syslog, unless it is connected. If syslog is restarted, the writer
// itself connects again.
func (s *syslogd) connect() (err error) {
	if s.w != nil {
		return nil
	}
	network := ""
	if s.socket != "" {
		network = "unixgram"
	}
	s.w, err = syslog.Dial(network, s.socket, syslog.LOG_DAEMON|syslog.LOG_INFO, "vmav")
	return err
}

func (*syslogd) name() string { return "syslog" }
func (*syslogd) log() bool    { return true }
func (s *syslogd) close() error {
	if s.w == nil {
		return nil
	}
	return s.w.Close()
}

func (s *syslogd) send(_ context.Context, e *Event) error {
	if err := s.connect(); err != nil {
		return err
	}
	switch e.level() {
	case levelError:
		return s.w.Err(e.text())
	case levelWarning:
		return s.w.Warning(e.text())
	}
	return s.w.Info(e.text())
}
