package domain

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"

	"libvirt.org/go/libvirt"
)

// Errors that a caller may act on. Test for them with errors.Is.
var (
	// ErrNoDaemon reports that nothing answers at the libvirt URI.
	ErrNoDaemon = errors.New("no libvirt daemon answers")
	// ErrNotFound reports that no domain has the id, name or UUID given.
	ErrNotFound = errors.New("no such domain")
	// ErrNotRunning reports a domain without a running QEMU.
	ErrNotRunning = errors.New("the domain is not running")
	// ErrDenied reports that libvirt or the kernel refuses access.
	ErrDenied = errors.New("permission denied")
)

// Host is a connection to libvirt. It is safe for concurrent use. Whoever connected closes
// it.
type Host struct {
	conn *libvirt.Connect
	uri  string

	mu       sync.Mutex
	calls    int // that may outlive their caller
	closed   bool
	backend  Backend
	fallback func(error) // told once why the module is not used; nil afterwards
}

// Domain describes one libvirt domain at the moment it was looked up.
type Domain struct {
	ID      int // -1 while it does not run
	Name    string
	UUID    string
	State   string // as virsh says it: "running", "paused", "shut off", …
	Running bool   // QEMU runs: also while the guest is paused
	Paused  bool
	OS      string // libosinfo id in the domain's metadata, "" for none
}

// Connect connects to libvirt. If uri is empty it uses $LIBVIRT_DEFAULT_URI, or else
// libvirt's own default. The error wraps ErrNoDaemon or ErrDenied if that is the reason.
// The caller closes the Host.
func Connect(uri string) (*Host, error) {
	conn, err := libvirt.NewConnect(uri)
	if err != nil {
		at := uri
		if at == "" {
			at = "the default URI"
		}
		return nil, fmt.Errorf("connect to libvirt at %s: %w", at, explain(err))
	}
	h := &Host{conn: conn, uri: uri, backend: Auto}
	if u, err := conn.GetURI(); err == nil {
		h.uri = u
	}
	return h, nil
}

// explain wraps a libvirt error in the error of this package that fits, if one does.
func explain(err error) error {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return err
	}
	text := strings.TrimSpace(e.Message)
	var kind error
	switch e.Code {
	case libvirt.ERR_NO_DOMAIN:
		kind = ErrNotFound
	case libvirt.ERR_OPERATION_INVALID:
		kind = ErrNotRunning
	case libvirt.ERR_AUTH_FAILED, libvirt.ERR_AUTH_CANCELLED, libvirt.ERR_AUTH_UNAVAILABLE, libvirt.ERR_ACCESS_DENIED, libvirt.ERR_OPERATION_DENIED:
		kind = ErrDenied
	case libvirt.ERR_SYSTEM_ERROR, libvirt.ERR_NO_CONNECT:
		switch {
		case strings.Contains(text, "Permission denied"):
			kind = ErrDenied
		case strings.Contains(text, "Failed to connect socket"):
			kind = ErrNoDaemon
		}
	}
	if kind == nil {
		return errors.New(text)
	}
	return fmt.Errorf("%w (%s)", kind, text)
}

// URI returns the address of the connection.
func (h *Host) URI() string { return h.uri }

// Close ends the connection. Memory of opened sources can still be read, but no registers.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	if h.calls > 0 {
		return nil // the last of them closes the connection
	}
	_, err := h.conn.Close()
	return err
}

// begin registers a call that may outlive its caller; it fails once the Host is closed. end
// says that the call is over.
func (h *Host) begin() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return os.ErrClosed
	}
	h.calls++
	return nil
}

func (h *Host) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.calls--; h.calls == 0 && h.closed {
		_, _ = h.conn.Close()
	}
}

// List returns domains in the order of their names: all of them, or only those that run.
func (h *Host) List(all bool) ([]Domain, error) {
	flags := libvirt.CONNECT_LIST_DOMAINS_ACTIVE
	if all {
		flags |= libvirt.CONNECT_LIST_DOMAINS_INACTIVE
	}
	doms, err := h.conn.ListAllDomains(flags)
	if err != nil {
		return nil, fmt.Errorf("list the domains of %s: %w", h.uri, explain(err))
	}
	defer func() {
		for i := range doms {
			free(&doms[i])
		}
	}()
	var out []Domain
	for i := range doms {
		d, err := describe(&doms[i])
		if errors.Is(err, ErrNotFound) {
			continue // it went away meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// Find looks a domain up as virsh does: by id if the text is a number, then by name, then
// by UUID. The error wraps ErrNotFound if there is none.
func (h *Host) Find(text string) (Domain, error) {
	d, err := h.lookup(text)
	if err != nil {
		return Domain{}, err
	}
	defer free(d)
	return describe(d)
}

// FindUUID looks a domain up by its UUID only. The error wraps ErrNotFound if there is
// none.
func (h *Host) FindUUID(uuid string) (Domain, error) {
	d, err := h.conn.LookupDomainByUUIDString(uuid)
	if err != nil {
		return Domain{}, fmt.Errorf("look up domain %s on %s: %w", uuid, h.uri, explain(err))
	}
	defer free(d)
	return describe(d)
}

func (h *Host) lookup(text string) (*libvirt.Domain, error) {
	if id, err := strconv.ParseUint(text, 10, 31); err == nil {
		if d, err := h.conn.LookupDomainById(uint32(id)); err == nil {
			return d, nil
		}
	}
	d, err := h.conn.LookupDomainByName(text)
	if err == nil {
		return d, nil
	}
	if e := explain(err); !errors.Is(e, ErrNotFound) {
		return nil, fmt.Errorf("look up domain %q on %s: %w", text, h.uri, e)
	}
	if d, err := h.conn.LookupDomainByUUIDString(text); err == nil {
		return d, nil
	}
	return nil, fmt.Errorf("look up domain %q on %s: %w", text, h.uri, ErrNotFound)
}

// free releases a domain handle. Nobody could act on its failure.
func free(d *libvirt.Domain) { _ = d.Free() }

var states = map[libvirt.DomainState]string{
	libvirt.DOMAIN_NOSTATE: "no state", libvirt.DOMAIN_RUNNING: "running", libvirt.DOMAIN_BLOCKED: "idle",
	libvirt.DOMAIN_PAUSED: "paused", libvirt.DOMAIN_SHUTDOWN: "in shutdown", libvirt.DOMAIN_CRASHED: "crashed",
	libvirt.DOMAIN_PMSUSPENDED: "pmsuspended", libvirt.DOMAIN_SHUTOFF: "shut off",
}

func describe(d *libvirt.Domain) (Domain, error) {
	out := Domain{ID: -1}
	var err error
	if out.Name, err = d.GetName(); err != nil {
		return out, fmt.Errorf("read a domain's name: %w", explain(err))
	}
	if out.UUID, err = d.GetUUIDString(); err != nil {
		return out, fmt.Errorf("read the UUID of domain %s: %w", out.Name, explain(err))
	}
	state, _, err := d.GetState()
	if err != nil {
		return out, fmt.Errorf("read the state of domain %s: %w", out.Name, explain(err))
	}
	out.State = states[state]
	out.Paused = state == libvirt.DOMAIN_PAUSED || state == libvirt.DOMAIN_PMSUSPENDED
	out.Running = out.Paused || state == libvirt.DOMAIN_RUNNING || state == libvirt.DOMAIN_BLOCKED || state == libvirt.DOMAIN_SHUTDOWN
	if out.Running {
		if id, err := d.GetID(); err == nil {
			out.ID = int(id)
		}
	}
	if text, err := d.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, "http://libosinfo.org/xmlns/libvirt/domain/1.0", libvirt.DOMAIN_AFFECT_CURRENT); err == nil {
		if _, rest, ok := strings.Cut(text, `id="`); ok {
			out.OS, _, _ = strings.Cut(rest, `"`)
		}
	}
	return out, nil
}

// local checks that the connection leads to QEMU on this host.
func (h *Host) local() error {
	typ, err := h.conn.GetType()
	if err != nil {
		return fmt.Errorf("read the driver of %s: %w", h.uri, explain(err))
	}
	if typ != "QEMU" {
		return fmt.Errorf("%s is libvirt's %s driver: only domains of its QEMU driver can be read", h.uri, typ)
	}
	if u, err := url.Parse(h.uri); err == nil && u.Host != "" {
		return fmt.Errorf("%s is another host: vmav runs on the host of the domain", h.uri)
	}
	return nil
}
