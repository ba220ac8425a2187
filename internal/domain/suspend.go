package domain

import (
	"context"
	"fmt"
)

// Suspend pauses a running domain, as virsh suspend does. The domain must not have been
// restarted since d was read. The libvirt call cannot be interrupted: if ctx ends first, it
// may still take effect.
func (h *Host) Suspend(ctx context.Context, d Domain) error {
	if err := h.begin(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer h.end()
		done <- h.suspend(d)
	}()
	select {
	case <-ctx.Done():
		return fmt.Errorf("suspend domain %s: %w", d.Name, ctx.Err())
	case err := <-done:
		if err != nil {
			return fmt.Errorf("suspend domain %s: %w", d.Name, err)
		}
		return nil
	}
}

func (h *Host) suspend(d Domain) error {
	dom, err := h.conn.LookupDomainByUUIDString(d.UUID)
	if err != nil {
		return explain(err)
	}
	defer free(dom)
	if id, err := dom.GetID(); err != nil || int(id) != d.ID {
		return fmt.Errorf("it has been started anew since: %w", ErrNotRunning)
	}
	if err := dom.Suspend(); err != nil {
		return explain(err)
	}
	return nil
}
