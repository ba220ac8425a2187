package ready

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vmav.dev/vmav/internal/domain"
)

// Libvirt looks for domains, and checks whether their QEMU processes can be read.
func (h *Inspector) Libvirt(ctx context.Context, uri string, backend domain.Backend) Answer {
	a := Answer{What: "libvirt"}
	conn, err := domain.Connect(uri)
	if err != nil {
		a.Detail = err.Error()
		switch {
		case !h.exists("/usr/sbin/libvirtd") && !h.exists("/usr/sbin/virtqemud"):
			a.Fix = h.asRoot("apt-get install libvirt-daemon-system")
		case errors.Is(err, domain.ErrDenied):
			a.Fix = h.asRoot("usermod -aG libvirt "+userName()) + " # and log in anew"
		case errors.Is(err, domain.ErrNoDaemon) && h.exists("/usr/sbin/virtqemud") && !h.exists("/usr/sbin/libvirtd"):
			a.Fix = h.start("virtqemud")
		case errors.Is(err, domain.ErrNoDaemon):
			a.Fix = h.start("libvirtd")
		default:
			a.Fix = "vmav check -c qemu:///system"
		}
		return a
	}
	defer conn.Close()
	conn.SetBackend(backend, nil)
	doms, err := conn.List(false)
	if err != nil {
		a.Detail, a.Fix = err.Error(), h.asRoot("systemctl restart libvirtd")
		return a
	}
	var refused []string
	denied := false
	kinds := make(map[string]int)
	for _, d := range doms {
		src, err := conn.Open(ctx, d)
		if err != nil {
			refused = append(refused, err.Error())
			denied = denied || errors.Is(err, domain.ErrDenied)
			continue
		}
		kinds[src.Info().Kind]++
		src.Close()
	}
	a.OK = len(refused) == 0
	a.Detail = fmt.Sprintf("%s, %d running domains", conn.URI(), len(doms))
	for _, kind := range []domain.Backend{domain.Memhook, domain.QEMU} {
		if n := kinds[string(kind)]; n > 0 {
			a.Detail += fmt.Sprintf(", %d through %s", n, kind)
		}
	}
	if !a.OK {
		a.Detail += ", not readable: " + strings.Join(refused, "; ")
		a.Fix = "virsh -c " + conn.URI() + " list"
		if denied {
			a.Fix = "sudo vmav check"
		}
	}
	return a
}
