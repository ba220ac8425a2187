package watch

import (
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// tell tells systemd, where that started the service.
func tell(state string) { _, _ = daemon.SdNotify(false, state) }

// watchdog ticks as often as systemd's watchdog wants to hear of the service; never where
// it does not.
func watchdog() (<-chan time.Time, func()) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every <= 0 {
		return nil, func() {}
	}
	t := time.NewTicker(every / 2)
	return t.C, t.Stop
}
