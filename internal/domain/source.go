package domain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/memhook"
	"vmav.dev/vmav/internal/source/qemu"
)

// Backend is a way to read a domain's memory.
type Backend string

// Backends.
const (
	Auto    Backend = "auto"             // the module where it can be had, else the QEMU process
	Memhook Backend = source.KindMemhook // the kvm-memhook module
	QEMU    Backend = source.KindQEMU    // the QEMU process: read-only, no hooks, no actions
)

// ParseBackend returns the backend with a name, or an error that lists the known names.
func ParseBackend(s string) (Backend, error) {
	switch b := Backend(s); b {
	case Auto, Memhook, QEMU:
		return b, nil
	}
	return "", fmt.Errorf("source %q: known are auto, memhook and qemu", s)
}

// SetBackend chooses the backend for domains that are opened from now on. A new Host has Auto. If
// Auto cannot use the module and reads the QEMU process instead, it calls fallback with the
// reason, once for a Host. fallback may be nil.
func (h *Host) SetBackend(b Backend, fallback func(error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.backend, h.fallback = b, fallback
}

// Open opens the memory of a running domain. The error wraps ErrNotRunning, ErrDenied, or
// an error of the backend. The caller closes the Source before the Host.
func (h *Host) Open(ctx context.Context, d Domain) (source.Source, error) {
	if err := h.local(); err != nil {
		return nil, err
	}
	if !d.Running {
		return nil, fmt.Errorf("domain %s is %s: %w", d.Name, d.State, ErrNotRunning)
	}
	pid, err := findQEMU(d)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", d.Name, err)
	}
	src, err := h.openProcess(ctx, d, pid)
	if err != nil {
		return nil, err
	}
	// This proves that the opened process is the one that was found, and not a later one
	// with the same id: it still belongs to the domain, and src would report its end.
	if again, err := findQEMU(d); err != nil || again != pid {
		src.Close()
		return nil, fmt.Errorf("domain %s: its QEMU process went away: %w", d.Name, source.ErrGone)
	}
	return src, nil
}

// openProcess opens a domain's QEMU process with the chosen backend.
func (h *Host) openProcess(ctx context.Context, d Domain, pid int) (source.Source, error) {
	h.mu.Lock()
	backend := h.backend
	h.mu.Unlock()
	if backend != QEMU {
		g, err := memhook.Open(ctx, d.Name, pid)
		if err == nil {
			return g, nil
		}
		if errors.Is(err, memhook.ErrDenied) {
			err = fmt.Errorf("%w: %w", err, ErrDenied)
		}
		if backend == Memhook || ctx.Err() != nil {
			return nil, fmt.Errorf("domain %s: %w", d.Name, err)
		}
		why := err
		if op := new(memhook.OpError); errors.As(err, &op) {
			why = op.Err // the reason alone: nobody asked for the operation
		}
		h.fellBack(fmt.Errorf("domain %s is read through its QEMU process: %w", d.Name, why))
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

// fellBack reports once why the module is not used.
func (h *Host) fellBack(why error) {
	h.mu.Lock()
	tell := h.fallback
	h.fallback = nil
	h.mu.Unlock()
	if tell != nil {
		tell(why)
	}
}

// monitor runs commands of QEMU's human monitor through libvirt. The libvirt call cannot be
// interrupted. If ctx ends first, its answer is discarded.
func (h *Host) monitor(d Domain) func(context.Context, string) (string, error) {
	return func(ctx context.Context, command string) (string, error) {
		type answer struct {
			text string
			err  error
		}
		if err := h.begin(); err != nil {
			return "", err
		}
		done := make(chan answer, 1)
		go func() {
			defer h.end()
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
				// libvirt may notice a dead QEMU later than the broken monitor.
				_, perr := findQEMU(d)
				if errors.Is(err, ErrNotRunning) || errors.Is(err, ErrNotFound) || errors.Is(perr, ErrNotRunning) {
					err = fmt.Errorf("%w: %w", source.ErrGone, err)
				}
				return "", fmt.Errorf("ask QEMU of domain %s %q: %w", d.Name, command, err)
			}
			return a.text, nil
		}
	}
}

// findQEMU returns the process that runs a domain: a QEMU program that was started with the
// domain's UUID, as libvirt does. Any user can start such a process. If there are several,
// libvirt's pid file decides; without one, none is read.
func findQEMU(d Domain) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	want := []byte("\x00-uuid\x00" + d.UUID + "\x00")
	var found []int
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !bytes.Contains(line, want) {
			continue
		}
		exe, err := os.Readlink(dir + "/exe")
		if err == nil && !strings.HasPrefix(filepath.Base(exe), "qemu") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			found = append(found, pid)
		}
	}
	switch len(found) {
	case 0:
		return 0, fmt.Errorf("no process on this host runs it: %w", ErrNotRunning)
	case 1:
		return found[0], nil
	}
	for _, file := range pidFiles(d.Name) {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err == nil && slices.Contains(found, pid) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("processes %v all claim to run it, and libvirt's pid file names none of them", found)
}

// pidFiles are the paths of the pid files that libvirt's system and session daemons write
// for a domain.
func pidFiles(name string) []string {
	name = filepath.Base(name) + ".pid"
	files := []string{filepath.Join("/run/libvirt/qemu", name)}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		files = append(files, filepath.Join(dir, "libvirt/qemu/run", name))
	}
	if os.Getuid() != 0 {
		files = append(files, filepath.Join(fmt.Sprintf("/run/user/%d", os.Getuid()), "libvirt/qemu/run", name))
	}
	return files
}
