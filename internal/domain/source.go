package domain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/qemu"
)

// Open gives access to the memory of a running domain. The caller closes the Source,
// before the Host.
func (h *Host) Open(ctx context.Context, d Domain) (source.Source, error) {
	if err := h.local(); err != nil {
		return nil, err
	}
	if !d.Running {
		return nil, fmt.Errorf("domain %s is %s: %w", d.Name, d.State, ErrNotRunning)
	}
	pid, err := findQEMU(d.UUID)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", d.Name, err)
	}
	src, err := qemu.Open(ctx, qemu.Config{Name: d.Name, PID: pid, Monitor: h.monitor(d)})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("%w: %w (run vmav as root or as the user that QEMU runs as)", err, ErrDenied)
	}
	if err != nil {
		return nil, err
	}
	return src, nil
}

// monitor runs commands of QEMU's human monitor through libvirt. libvirt's call
// cannot be interrupted: where ctx ends first, the answer is dropped when it comes.
func (h *Host) monitor(d Domain) func(context.Context, string) (string, error) {
	return func(ctx context.Context, command string) (string, error) {
		type answer struct {
			text string
			err  error
		}
		done := make(chan answer, 1)
		go func() {
			dom, err := h.conn.LookupDomainByUUIDString(d.UUID)
			if err != nil {
				done <- answer{err: err}
				return
			}
			defer free(dom)
			text, err := dom.QemuMonitorCommand(command, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_HMP)
			done <- answer{text, err}
		}()
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case a := <-done:
			if a.err != nil {
				err := explain(a.err)
				if errors.Is(err, ErrNotRunning) || errors.Is(err, ErrNotFound) {
					err = fmt.Errorf("%w: %w", source.ErrGone, err)
				}
				return "", fmt.Errorf("ask QEMU of domain %s %q: %w", d.Name, command, err)
			}
			return a.text, nil
		}
	}
}

// findQEMU returns the process that runs the domain of a UUID: libvirt starts QEMU
// with `-uuid`. Pid files are not asked, because a stale one names a stranger.
func findQEMU(uuid string) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	want := []byte("\x00-uuid\x00" + uuid + "\x00")
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !bytes.Contains(line, want) {
			continue
		}
		return strconv.Atoi(filepath.Base(dir))
	}
	return 0, fmt.Errorf("no process on this host runs it: %w", ErrNotRunning)
}
