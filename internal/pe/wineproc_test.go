package pe_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/pe"
)

// wine is a Wine of the test's own, with the host program in it.
type wine struct {
	dir string // of the host program
	env []string
}

// newWine builds the host program and makes a prefix.
func newWine(t *testing.T) *wine {
	t.Helper()
	dir := t.TempDir()
	host, probe := filepath.Join(dir, "host.exe"), filepath.Join(dir, "probe.dll")
	for _, args := range [][]string{
		{"-O1", "-shared", "-o", probe, "petest/winehost/probe.c"},
		{"-O1", "-o", host, "petest/winehost/host.c", probe},
	} {
		if out, err := exec.Command("x86_64-w64-mingw32-gcc", args...).CombinedOutput(); err != nil {
			t.Fatalf("build host: %v: %s (Debian package gcc-mingw-w64-x86-64-win32)", err, out)
		}
	}
	if _, err := os.Stat(wineLoader); err != nil {
		t.Fatalf("%v (Debian package wine64)", err)
	}
	return &wine{dir, append(os.Environ(), "WINEPREFIX="+filepath.Join(dir, "prefix"), "WINEDEBUG=-all", "DISPLAY=",
		"WINEDLLOVERRIDES=winemenubuilder.exe,mscoree,mshtml=")}
}

const wineLoader, wineServer = "/usr/lib/wine/wine64", "/usr/lib/wine/wineserver64"

// starts is how often Wine is started for one host program: its server may go away under a
// program that has not begun.
const starts = 3

// start runs the host program, which lives until the test ends.
func (w *wine) start(t *testing.T, args ...string) *wineProcess {
	t.Helper()
	t.Cleanup(func() {
		stop := exec.Command(wineServer, "-k", "-w")
		stop.Env = w.env
		_ = stop.Run()
	})
	for try := 1; ; try++ {
		pid, err := w.try(t, args)
		if err == nil {
			return readWine(t, pid)
		}
		if try == starts {
			t.Fatal(err)
		}
		t.Logf("start %d: %v", try, err)
	}
}

// try starts the host program and waits until it is ready.
func (w *wine) try(t *testing.T, args []string) (pid int, err error) {
	t.Helper()
	cmd := exec.Command(wineLoader, append([]string{filepath.Join(w.dir, "host.exe")}, args...)...)
	// A file, as Wine's server keeps what it inherits open.
	said, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		return 0, err
	}
	defer said.Close()
	cmd.Env, cmd.Dir, cmd.Stderr = w.env, w.dir, said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	end := func() error {
		_ = cmd.Process.Kill()
		err := cmd.Wait()
		text, _ := os.ReadFile(said.Name())
		return fmt.Errorf("%w: %s", err, text)
	}
	ready := make(chan bool, 1)
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			if text := strings.TrimSpace(s.Text()); text == "ready" {
				ready <- true
				return
			} else if strings.HasPrefix(text, "missing ") {
				t.Logf("host: %s", text)
			}
		}
		ready <- false
	}()
	select {
	case ok := <-ready:
		if !ok {
			return 0, fmt.Errorf("the host program ended before it was ready: %w", end())
		}
	case <-time.After(2 * time.Minute):
		return 0, fmt.Errorf("the host program was not ready in two minutes: %w", end())
	}
	t.Cleanup(func() { _ = end() })
	return cmd.Process.Pid, nil
}

// wineProcess is what a process under Wine has in its memory.
type wineProcess struct {
	images map[string]*pe.Image // by path
	mapped []pe.Range           // every readable range of addresses
}

// image is the image mapped at an address, or nil.
func (p *wineProcess) image(va uint64) *pe.Image {
	for _, m := range p.images {
		if va >= m.Base && va-m.Base < uint64(len(m.Mem)) {
			return m
		}
	}
	return nil
}

// readable reports whether an address can be read.
func (p *wineProcess) readable(va uint64) bool {
	for _, r := range p.mapped {
		if va >= r.Start && va < r.End {
			return true
		}
	}
	return false
}

// readWine reads every PE image that the process has mapped from a file.
func readWine(t *testing.T, pid int) *wineProcess {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	p := &wineProcess{images: map[string]*pe.Image{}}
	for _, line := range strings.Split(string(maps), "\n") {
		f := strings.Fields(line)
		var r pe.Range
		if len(f) < 5 {
			continue
		}
		if _, err := fmt.Sscanf(f[0], "%x-%x", &r.Start, &r.End); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if strings.HasPrefix(f[1], "r") {
			p.mapped = append(p.mapped, r)
		}
		if len(f) != 6 || p.images[f[5]] != nil || !isPE(f[5]) {
			continue
		}
		var head [4096]byte
		if _, err := mem.ReadAt(head[:], int64(r.Start)); err != nil || head[0] != 'M' || head[1] != 'Z' {
			continue
		}
		nt := binary.LittleEndian.Uint32(head[0x3c:])
		if nt > 3000 {
			continue
		}
		size := (binary.LittleEndian.Uint32(head[nt+24+56:]) + 4095) &^ 4095
		img := &pe.Image{Name: f[5], Base: r.Start, Mem: make([]byte, size), Pages: make([]pe.Origin, size/4096)}
		for i := range img.Pages {
			if _, err := mem.ReadAt(img.Mem[i*4096:(i+1)*4096], int64(r.Start)+int64(i)*4096); err == nil {
				img.Pages[i] = pe.Resident
			}
		}
		p.images[f[5]] = img
	}
	return p
}

// still copies a DLL under a name of its own, without the mark by which Wine knows its
// own DLLs and treats them specially.
func (w *wine) still(t *testing.T, path string) string {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if mark := []byte("Wine builtin DLL"); bytes.HasPrefix(file[0x40:], mark) {
		clear(file[0x40 : 0x40+len(mark)])
	}
	to := filepath.Join(w.dir, "still-"+filepath.Base(path))
	writeFile(t, to, file)
	return to
}
