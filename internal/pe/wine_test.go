package pe_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/pe"
)

// wineModules are loaded on top of what every process has: large and small ones,
// with COM, with delay imports, with much data.
var wineModules = []string{
	"shell32.dll", "ole32.dll", "winhttp.dll", "comctl32.dll", "crypt32.dll", "setupapi.dll",
	"oleaut32.dll", "gdiplus.dll", "msvcrt.dll", "ucrtbase.dll", "riched20.dll", "version.dll",
	"dbghelp.dll", "wintrust.dll", "urlmon.dll", "d3d9.dll", "msxml3.dll", "quartz.dll",
}

// startWine runs the host program under Wine and returns its process id.
func startWine(t *testing.T) int {
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
	const loader, server = "/usr/lib/wine/wine64", "/usr/lib/wine/wineserver64"
	if _, err := os.Stat(loader); err != nil {
		t.Fatalf("%v (Debian package wine64)", err)
	}
	env := append(os.Environ(), "WINEPREFIX="+filepath.Join(dir, "prefix"), "WINEDEBUG=-all", "DISPLAY=", "WINEDLLOVERRIDES=winemenubuilder.exe,mscoree,mshtml=")
	cmd := exec.Command(loader, append([]string{host}, wineModules...)...)
	cmd.Env, cmd.Dir = env, dir
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		stop := exec.Command(server, "-k", "-w")
		stop.Env = env
		_ = stop.Run()
	})
	ready := make(chan error, 1)
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			if strings.TrimSpace(s.Text()) == "ready" {
				ready <- nil
				return
			}
		}
		ready <- fmt.Errorf("host ended")
	}()
	select {
	case err = <-ready:
	case <-time.After(2 * time.Minute):
		err = fmt.Errorf("host not ready")
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// wineImages reads every PE image that the process has mapped from a file.
func wineImages(t *testing.T, pid int) map[string]*pe.Image {
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
	images := map[string]*pe.Image{}
	for _, line := range strings.Split(string(maps), "\n") {
		f := strings.Fields(line)
		if len(f) != 6 || images[f[5]] != nil || !isPE(f[5]) {
			continue
		}
		var base uint64
		if _, err := fmt.Sscanf(f[0], "%x-", &base); err != nil {
			continue
		}
		var head [4096]byte
		if _, err := mem.ReadAt(head[:], int64(base)); err != nil || head[0] != 'M' || head[1] != 'Z' {
			continue
		}
		nt := binary.LittleEndian.Uint32(head[0x3c:])
		if nt > 3000 {
			continue
		}
		size := (binary.LittleEndian.Uint32(head[nt+24+56:]) + 4095) &^ 4095
		img := &pe.Image{Name: f[5], Base: base, Mem: make([]byte, size), Pages: make([]pe.Origin, size/4096)}
		for p := range img.Pages {
			if _, err := mem.ReadAt(img.Mem[p*4096:(p+1)*4096], int64(base)+int64(p)*4096); err == nil {
				img.Pages[p] = pe.Resident
			}
		}
		images[f[5]] = img
	}
	return images
}

// TestWine rebuilds what a real loader has mapped and compares it with the files.
func TestWine(t *testing.T) {
	if testing.Short() {
		t.Skip("starts Wine")
	}
	images := wineImages(t, startWine(t))
	index := pe.NewExportIndex()
	var names []string
	for path, img := range images {
		index.Add(img, filepath.Base(path))
		names = append(names, path)
	}
	sort.Strings(names)
	if len(names) < 30 {
		t.Fatalf("only %d images: %v", len(names), names)
	}
	var rb pe.Rebuilder
	exact, wrongBase, runtime := 0, 0, 0
	var code, codeOff, data, dataOff int
	for _, path := range names {
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := rb.Rebuild(images[path], pe.Options{ResolveExport: index.Resolve})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if want := originalBase(file); f.Fidelity.Base.Preferred != want {
			t.Logf("%s: base %#x by %s, want %#x", path, f.Fidelity.Base.Preferred, f.Fidelity.Base.Method, want)
			if f.Fidelity.Base.Proven {
				t.Error("and it is called proven")
			}
			wrongBase++
			if f, err = rb.Rebuild(images[path], pe.Options{ResolveExport: index.Resolve, PreferredBase: want}); err != nil {
				t.Fatal(err)
			}
		}
		all := 0
		for o := range f.Data {
			same := f.Data[o] == file[o]
			if !same {
				all++
			}
			if writableAt(f.Headers, o) {
				data++
				if !same {
					dataOff++
				}
				continue
			}
			code++
			if !same {
				if codeOff++; codeOff < 40 {
					t.Errorf("%s: byte at %#x of a read-only section is %#02x, want %#02x (known: %v)", filepath.Base(path), o, f.Data[o], file[o], f.Fidelity.Known(uint64(o), 1))
				}
			}
		}
		if all == 0 {
			exact++
		}
		if filepath.Base(path) == "host.exe" {
			runtime = f.Fidelity.Imports.Runtime
		}
	}
	if runtime == 0 {
		t.Error("the host's relocations at run time were not found")
	}
	if wrongBase*20 > len(names) {
		t.Errorf("base of %d of %d images not found without the loader's record", wrongBase, len(names))
	}
	if share := float64(dataOff) / float64(data); share > 0.01 {
		t.Errorf("%.2f %% of the writable bytes differ", 100*share)
	}
	t.Logf("%d images, %d byte-identical; read-only bytes %d, of them different %d; writable bytes %d, of them different %d",
		len(names), exact, code, codeOff, data, dataOff)
}

func writableAt(h *pe.Headers, off int) bool {
	for i := range h.Sections {
		s := &h.Sections[i]
		if s.RawOffset != 0 && off >= int(s.RawOffset) && off < int(s.RawOffset+s.RawSize) {
			return s.Writable()
		}
	}
	return false
}
