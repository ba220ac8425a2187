package kill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
)

const (
	ntdllPath = `\Windows\System32\ntdll.dll`
	ntdllName = "ntdll.dll"
	// maxLibrary bounds the image of ntdll, in bytes. That of Windows 11 has 2 MiB.
	maxLibrary = 16 << 20
)

// Names of the system calls that are looked up.
const (
	ntTerminateProcess = "NtTerminateProcess"
	ntOpenProcess      = "NtOpenProcess"
	ntClose            = "NtClose"
)

// library is the guest's ntdll, one file that every process maps.
type library struct {
	control uint64            // address of its control area, which identifies the file
	rvas    map[string]uint32 // RVAs of the system calls that were found
	parks   []uint32          // RVAs of instructions in its code that jump to themselves
}

// complete reports whether everything was found that may be needed.
func (l *library) complete() bool { return len(l.rvas) == 3 && len(l.parks) > 0 }

// findLibrary finds ntdll in the processes that Windows itself started, whose mappings only
// Windows can change. It is the file that one of them maps under the name of ntdll, and
// that has this name in its own export table.
func findLibrary(ctx context.Context, g *introspect.Guest, procs []introspect.Process) (*library, error) {
	var errs []error
	for i := range procs {
		p := &procs[i]
		if !slices.Contains(p.Flags, introspect.FlagCritical) || p.PEB == 0 || p.Wow64 || !p.Exited.IsZero() {
			continue
		}
		lib, err := readLibrary(ctx, g, p)
		if err == nil {
			return lib, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		errs = append(errs, fmt.Errorf("process %d (%s): %w", p.PID, p.Name, err))
	}
	if len(errs) == 0 {
		return nil, errors.New("the guest runs none of Windows' own processes")
	}
	return nil, errors.Join(errs...)
}

func readLibrary(ctx context.Context, g *introspect.Guest, p *introspect.Process) (*library, error) {
	v, err := findMapping(ctx, g, p, 0)
	if err != nil {
		return nil, err
	}
	size := v.End + 1 - v.Start
	if size > maxLibrary {
		return nil, fmt.Errorf("its %s has %d bytes", ntdllName, size)
	}
	mem := make([]byte, size)
	origins := make([]introspect.PageOrigin, size/pe.PageSize)
	if err := g.ReadImage(ctx, p, v, v.Start, mem, origins); err != nil {
		return nil, err
	}
	img := &pe.Image{Name: ntdllName, Base: v.Start, Mem: mem, Pages: make([]pe.Origin, len(origins))}
	for i, o := range origins {
		if o != introspect.PageAbsent {
			img.Pages[i] = pe.Resident
		}
	}
	self, rvas, err := pe.FindExports(img, ntTerminateProcess, ntOpenProcess, ntClose)
	if err != nil {
		return nil, err
	}
	if !strings.EqualFold(self, ntdllName) {
		return nil, fmt.Errorf("its %s calls itself %q", ntdllName, self)
	}
	return &library{control: v.ControlArea(), rvas: rvas, parks: findParks(img)}, nil
}

// findMapping returns where a process maps ntdll. If control is not 0, the mapping must be
// of the file with that control area.
func findMapping(ctx context.Context, g *introspect.Guest, p *introspect.Process, control uint64) (*introspect.VAD, error) {
	vads, problems, err := g.VADs(ctx, p)
	if err != nil {
		return nil, err
	}
	for i := range vads {
		v := &vads[i]
		if !v.Image() || !strings.EqualFold(v.Path, ntdllPath) || v.ControlArea() == 0 {
			continue
		}
		if control != 0 && v.ControlArea() != control {
			return nil, fmt.Errorf("its %s is not the file that Windows' own processes map", ntdllName)
		}
		return v, nil
	}
	for _, pr := range problems {
		err = errors.Join(err, pr.Err)
	}
	return nil, errors.Join(fmt.Errorf("it maps no %s", ntdllPath), err)
}

// maxParks bounds the places to park a thread at. One that is in memory is enough.
const maxParks = 64

// findParks searches an image's code for EB FE, a jump to itself. It jumps to itself even
// where it is part of other instructions.
func findParks(img *pe.Image) []uint32 {
	h, err := pe.ParseHeaders(img.Mem[:pe.PageSize])
	if err != nil {
		return nil
	}
	var out []uint32
	for _, s := range h.Sections {
		const execute = 0x20000000 // IMAGE_SCN_MEM_EXECUTE
		if s.Characteristics&execute == 0 {
			continue
		}
		end := min(uint64(s.VirtualAddress)+uint64(s.VirtualSize), uint64(len(img.Mem)))
		for rva := uint64(s.VirtualAddress); rva+1 < end && len(out) < maxParks; rva++ {
			if img.Mem[rva] == 0xeb && img.Mem[rva+1] == 0xfe && rva%pe.PageSize != pe.PageSize-1 && img.Pages[rva/pe.PageSize] != pe.Absent {
				out = append(out, uint32(rva))
			}
		}
	}
	return out
}

// entry is the stub of a system call in one process.
type entry struct {
	va     uint64 // address of the stub
	length int    // in bytes
	number uint32 // of the system call
}

// entryOf returns the stub of a system call in process p, which maps ntdll at v. The code
// must be a stub. It must also equal the code in the file, as far as that is in memory. If
// the process has its own, different copy, the call is hooked.
func (l *library) entryOf(g *introspect.Guest, p *introspect.Process, v *introspect.VAD, name string) (entry, error) {
	rva, ok := l.rvas[name]
	if !ok {
		return entry{}, fmt.Errorf("%s exports no %s, or not all of its names are in memory", ntdllName, name)
	}
	e := entry{va: v.Start + uint64(rva), length: shortStub}
	if e.va+longStub > v.End {
		return entry{}, fmt.Errorf("%s exports %s beyond its end", ntdllName, name)
	}
	fail := func(err error) (entry, error) {
		return entry{}, fmt.Errorf("%s of process %d (%s): %w", name, p.PID, p.Name, err)
	}
	var mine, file [longStub]byte
	// The process's own page counts. If it has none, it will get that of the file.
	read := func(to []byte) error {
		err := g.Space(p).Read(to, e.va)
		if errors.Is(err, introspect.ErrNotPresent) {
			err = g.ReadFile(to, v, e.va)
		}
		return err
	}
	if err := read(mine[:shortStub]); err != nil {
		return fail(err)
	}
	if e.length = stubLength(mine[:shortStub]); e.length > shortStub {
		if err := read(mine[:e.length]); err != nil {
			return fail(err)
		}
	}
	var err error
	if e.number, err = parseStub(mine[:e.length]); err != nil {
		return fail(err)
	}
	switch err := g.ReadFile(file[:e.length], v, e.va); {
	case errors.Is(err, introspect.ErrNotPresent): // its form has to be enough
	case err != nil:
		return fail(err)
	case mine != file:
		return fail(fmt.Errorf("%w: the file has % x there", errStub, file[:e.length]))
	}
	return e, nil
}
