package ready

import (
	"context"
	"fmt"
	"time"

	"vmav.dev/vmav/internal/clam"
)

// oldDatabase is the age from which signatures count as old.
const oldDatabase = 7 * 24 * time.Hour

// Engine looks for a clamd that answers. If there is none, it looks for what a private
// one needs. It also looks at the age of the signatures.
func (h *Inspector) Engine(ctx context.Context, opt clam.Options) []Answer {
	engine := Answer{What: "clamd"}
	e, err := clam.Open(ctx, opt)
	if err != nil {
		engine.Detail = err.Error()
		switch {
		case !h.exists("/usr/sbin/clamd"):
			engine.Fix = h.asRoot("apt-get install clamav-daemon clamav-freshclam")
		case len(h.glob("/var/lib/clamav/*.c[lv]d")) == 0 && h.exists("/usr/bin/freshclam"):
			engine.Fix = h.asRoot("freshclam")
		case len(h.glob("/var/lib/clamav/*.c[lv]d")) == 0:
			engine.Fix = h.asRoot("apt-get install clamav-freshclam && freshclam")
		default:
			engine.Fix = h.start("clamav-daemon")
		}
		return []Answer{engine}
	}
	defer e.Close()
	info := e.Info()
	engine.OK, engine.Detail = true, info.Version+" at "+info.Socket
	if info.Private {
		engine.Detail = info.Version + ", a private one for each run"
		if len(opt.Databases) == 0 {
			engine.OK, engine.Optional = false, true
			engine.Detail += ", which takes a start: no clamd answers at " + clam.DefaultSocket
			engine.Fix = h.start("clamav-daemon")
		}
	}
	age := Answer{What: "signatures"}
	if d, known := info.Age(time.Now()); known {
		age.OK = d < oldDatabase
		age.Detail = fmt.Sprintf("database %s, %d days old", info.Database, int(d.Hours()/24))
		if !age.OK {
			age.Fix = h.asRoot("freshclam")
			if !h.exists("/usr/bin/freshclam") {
				age.Fix = h.asRoot("apt-get install clamav-freshclam && freshclam")
			}
		}
	} else {
		age.OK, age.Detail = true, "of unknown age: no official database"
	}
	return []Answer{engine, age}
}
