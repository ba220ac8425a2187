package watch

import (
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// tell sends a state to systemd, if that started the service.
func tell(state string) { _, _ = daemon.SdNotify(false, state) }

// watchdog returns a channel that ticks as often as systemd's watchdog wants to hear of the
// service. If the watchdog is off, it never ticks. The caller calls the function to stop
// it.
func watchdog() (<-chan time.Time, func()) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every <= 0 {
		return nil, func() {}
	}
	t := time.NewTicker(every / 2)
	return t.C, t.Stop
}
