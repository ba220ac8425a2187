package ready

import (
	"fmt"

	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/symsrv"
)

// Profiles looks at the Windows builds that vmav knows.
func (h *Inspector) Profiles() Answer {
	a := Answer{What: "profiles", OK: true}
	n := 0
	for _, p := range winstruct.OpenStore().List() {
		if p.Err != nil {
			a.OK, a.Detail, a.Fix = false, p.Err.Error(), "vmav profile verify"
			if p.Path != "" {
				a.Fix = h.asRoot("rm " + p.Path)
			}
			return a
		}
		n++
	}
	a.Detail = fmt.Sprintf("%d Windows builds", n)
	if symsrv.AirGapped() {
		a.Detail += "; air-gapped, no symbol server is asked"
	}
	return a
}
