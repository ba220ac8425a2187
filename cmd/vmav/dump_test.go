package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
)

// laidOut writes the memory of a test guest to a file.
func laidOut(t *testing.T, opts ntguest.Options) (string, *ntguest.Machine) {
	t.Helper()
	m, err := ntguest.Lay(opts)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "guest.raw")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	return path, m
}

func runVmav(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run(context.Background(), append([]string{"vmav"}, args...), &out, &errs); got != want {
		t.Fatalf("vmav %v: status %d, want %d\n%s%s", args, got, want, out.String(), errs.String())
	}
	return out.String()
}

// manifest is what is looked at of a manifest.json.
type manifest struct {
	PID     uint64
	Modules []struct {
		Name, Path, Base, File, SHA256 string
		Size                           uint64
		Exact                          bool
	}
}

func readManifest(t *testing.T, dir string) (m manifest) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestDumpAll dumps every module of a process, rebuilt and raw. The rebuilt files are
// the files; a raw one whose import names are lost is rebuilt by the exports of the
// others.
func TestDumpAll(t *testing.T) {
	image, m := laidOut(t, ntguest.Options{Build: "10.0.22000", Seed: 9, FileCache: true})
	for _, p := range m.Truth.Processes {
		if p.Name != "spin.exe" {
			continue
		}
		pid := fmt.Sprint(p.PID)
		files, raw := filepath.Join(t.TempDir(), "files"), filepath.Join(t.TempDir(), "raw")
		runVmav(t, 0, "dump", "-a", image, pid, "--all", "-o", files)
		runVmav(t, 0, "dump", "-a", image, pid, "--all", "--raw", "-o", raw)
		got := readManifest(t, files)
		if got.PID != p.PID || len(got.Modules) != len(p.Modules) || len(got.Modules) < 3 {
			t.Fatalf("manifest of pid %d with %d modules, want %d with %d", got.PID, len(got.Modules), p.PID, len(p.Modules))
		}
		for _, entry := range got.Modules {
			for _, tm := range p.Modules {
				if fmt.Sprintf("%#x", tm.Base) != entry.Base {
					continue
				}
				want, err := os.ReadFile("../../bin/ntguest.d/" + tm.File)
				if err != nil {
					t.Fatal(err)
				}
				if data, err := os.ReadFile(filepath.Join(files, entry.File)); err != nil || !bytes.Equal(data, want) || !entry.Exact {
					t.Errorf("%s: %v, %d bytes, the file has %d; exact %v", entry.Name, err, len(data), len(want), entry.Exact)
				}
				if _, err := os.Stat(filepath.Join(files, entry.File+".json")); err != nil {
					t.Error(err)
				}
			}
		}
		runVmav(t, 2, "dump", "-a", image, pid, "--all", "--module", "ntdll.dll")
		losesNames(t, raw)
	}
}

// losesNames wipes the references to import names of the first module of a manifest
// that imports, and has it rebuilt with and without the other modules.
func losesNames(t *testing.T, raw string) {
	le := binary.LittleEndian
	for _, entry := range readManifest(t, raw).Modules {
		path := filepath.Join(raw, entry.File)
		mem, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		nt := le.Uint32(mem[0x3c:])
		at := le.Uint32(mem[nt+24+112+8:])
		if at == 0 {
			continue
		}
		for ; le.Uint32(mem[at+12:]) != 0; at += 20 {
			le.PutUint32(mem[at:], 0)
		}
		lost := filepath.Join(t.TempDir(), "lost")
		if err := os.WriteFile(lost, mem, 0o600); err != nil {
			t.Fatal(err)
		}
		rebuild := func(more ...string) (unresolved, resolved int) {
			out := filepath.Join(t.TempDir(), "out")
			runVmav(t, 0, append([]string{"rebuild", lost, "--base", entry.Base, "-o", out}, more...)...)
			text, err := os.ReadFile(out + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var r struct {
				Fidelity struct {
					Imports struct{ Unresolved, Resolved int }
				}
			}
			if err := json.Unmarshal(text, &r); err != nil {
				t.Fatal(err)
			}
			return r.Fidelity.Imports.Unresolved, r.Fidelity.Imports.Resolved
		}
		if u, r := rebuild(); u == 0 || r != 0 {
			t.Errorf("%s: %d imports unresolved and %d resolved without modules", entry.Name, u, r)
		}
		if u, r := rebuild("--modules", raw); u != 0 || r == 0 {
			t.Errorf("%s: %d imports unresolved and %d resolved with modules", entry.Name, u, r)
		}
		return
	}
	t.Error("no module imports anything")
}
