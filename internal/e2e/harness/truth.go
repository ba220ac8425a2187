package harness

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Truth is what is compared of the guest's own account.
type Truth struct {
	Processes []Process
	Drivers   []Module
}

// Process is a process of that account.
type Process struct {
	PID      uint64
	PPID     uint64
	Name     string
	Path     string
	Session  int
	Created  string
	Exited   *string
	EPROCESS uint64
	DTB      uint64
	UserDTB  uint64 `json:"user_dtb"`
	PEB      uint64
	Threads  int
	Modules  []Module
}

// Module is a module or a driver.
type Module struct {
	PID  uint64 // in vmav's lists
	Name string
	Path string
	Base Number
	Size uint64
}

// Number is an address: a number in the guest's truth, text in vmav's lists.
type Number uint64

// UnmarshalJSON reads both forms.
func (n *Number) UnmarshalJSON(text []byte) error {
	_, err := fmt.Sscan(strings.Trim(string(text), `"`), (*uint64)(n))
	return err
}

// Listed is a process as vmav ps lists it.
type Listed struct {
	PID, PPID          uint64
	Name, Path         string
	Session            int
	Threads            int
	DTB, EPROCESS, PEB Number
	Exited             *string
}

func line(pid, ppid uint64, name, path string, session, threads int, dtb, eprocess, peb uint64, exited bool) string {
	return fmt.Sprintf("%d %d %s %s session=%d threads=%d %#x %#x %#x exited=%v", pid, ppid, name, path, session, threads, dtb, eprocess, peb, exited)
}

// Compare holds ps, modules and drivers of a domain or image against the truth.
func Compare(t *testing.T, want Truth, target ...string) {
	t.Helper()
	var procs []Listed
	Decode(t, &procs, 0, append([]string{"ps"}, target...)...)
	var a, b []string
	for _, p := range procs {
		peb := uint64(p.PEB)
		if p.Exited != nil {
			peb = 0 // the address outlives what it pointed to
		}
		a = append(a, line(p.PID, p.PPID, p.Name, p.Path, p.Session, p.Threads, uint64(p.DTB), uint64(p.EPROCESS), peb, p.Exited != nil))
	}
	for _, p := range want.Processes {
		peb := p.PEB
		if p.Exited != nil {
			peb = 0
		}
		b = append(b, line(p.PID, p.PPID, p.Name, p.Path, p.Session, p.Threads, p.DTB, p.EPROCESS, peb, p.Exited != nil))
	}
	same(t, "ps", a, b)

	var mods []Module
	Decode(t, &mods, 0, append([]string{"modules"}, target...)...)
	a, b = nil, nil
	for _, m := range mods {
		a = append(a, fmt.Sprintf("%d %s %s %#x %d", m.PID, m.Name, m.Path, uint64(m.Base), m.Size))
	}
	for _, p := range want.Processes {
		for _, m := range p.Modules {
			if p.Exited == nil {
				b = append(b, fmt.Sprintf("%d %s %s %#x %d", p.PID, m.Name, m.Path, uint64(m.Base), m.Size))
			}
		}
	}
	same(t, "modules", a, b)

	var drivers []Module
	Decode(t, &drivers, 0, append([]string{"drivers"}, target...)...)
	a, b = nil, nil
	for _, m := range drivers {
		a = append(a, fmt.Sprintf("%s %s %#x %d", m.Name, m.Path, uint64(m.Base), m.Size))
	}
	for _, m := range want.Drivers {
		b = append(b, fmt.Sprintf("%s %s %#x %d", m.Name, m.Path, uint64(m.Base), m.Size))
	}
	same(t, "drivers", a, b)
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("%s: vmav alone has %s", what, g)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%s: the guest alone has %s", what, w)
		}
	}
	if len(want) == 0 {
		t.Errorf("%s: the truth is empty", what)
	}
}
