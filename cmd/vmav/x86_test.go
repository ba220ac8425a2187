package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
)

// 32-bit guests go through the commands: without a profile, by the layout of their build, and
// with one.
func TestCommandsOn32BitGuests(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	database := filepath.Join(t.TempDir(), "test.ndb")
	if err := os.WriteFile(database, fmt.Appendf(nil, "Vmav.Test.Malware:1:*:%x\n", "VMAV-TEST-MALWARE"), 0o644); err != nil {
		t.Fatal(err)
	}
	builds, err := ntguest.Builds32()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range builds {
		image, m := laidOut(t, ntguest.Options{Build: b.Name, Seed: 9, MemoryMiB: 256, Hide: "malware.exe"})
		profile := filepath.Join(t.TempDir(), "profile.json")
		var text bytes.Buffer
		if err := m.Profile().SaveText(&text); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(profile, text.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		listed(t, image, m, true)
		runVmav(t, 0, "profile", "import", profile)
		listed(t, image, m, false)
		scanned(t, image, m, database)
		for _, p := range m.Truth.Processes {
			if p.Name != "notepad.exe" {
				continue
			}
			out := filepath.Join(t.TempDir(), "notepad.exe")
			runVmav(t, 0, "dump", "-a", image, fmt.Sprint(p.PID), "-o", out)
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile("../../bin/ntguest.d/syswow64/" + p.Modules[0].File)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: the dumped file of %d bytes is not that of %d, %v", b.Name, len(got), len(want), err)
			}
		}
	}
}

// listed holds ps, modules and drivers against the truth.
func listed(t *testing.T, image string, m *ntguest.Machine, inferred bool) {
	t.Helper()
	var procs []struct {
		PID   uint64
		Name  string
		Path  string
		Flags []string
	}
	if err := json.Unmarshal([]byte(runVmav(t, 0, "ps", "-a", image, "--format", "json")), &procs); err != nil {
		t.Fatal(err)
	}
	if len(procs) != len(m.Truth.Processes) {
		t.Fatalf("%s: %d processes, want %d", m.Build.Name, len(procs), len(m.Truth.Processes))
	}
	modules := 0
	for _, w := range m.Truth.Processes {
		modules += len(w.Modules)
		j := 0
		for j < len(procs) && procs[j].PID != w.PID {
			j++
		}
		if j == len(procs) || procs[j].Name != w.Name || procs[j].Path != w.Path {
			t.Errorf("%s: pid %d (%s) is not listed as it is", m.Build.Name, w.PID, w.Name)
			continue
		}
		has := func(flag string) bool { return slices.Contains(procs[j].Flags, flag) }
		if has("inferred") != inferred || has("hidden") != slices.Contains(m.Truth.Hidden, w.PID) {
			t.Errorf("%s: pid %d has flags %v", m.Build.Name, w.PID, procs[j].Flags)
		}
	}
	if n := strings.Count(runVmav(t, 0, "modules", "-a", image, "--format", "csv"), "\n") - 1; n != modules {
		t.Errorf("%s: %d modules, want %d", m.Build.Name, n, modules)
	}
	if n := strings.Count(runVmav(t, 0, "drivers", "-a", image, "--format", "csv"), "\n") - 1; n != len(m.Truth.Drivers) {
		t.Errorf("%s: %d drivers, want %d", m.Build.Name, n, len(m.Truth.Drivers))
	}
}

// scanned holds a scan against the truth: the malware is found, in its process and no other.
func scanned(t *testing.T, image string, m *ntguest.Machine, database string) {
	t.Helper()
	var got struct {
		Domains []struct {
			Build    string
			Findings []struct {
				Process, Signature string
			}
			Errors []any
		}
	}
	if err := json.Unmarshal([]byte(runVmav(t, 1, "scan", "-a", image, "--database", database, "--format", "json")), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Domains) != 1 || len(got.Domains[0].Errors) != 0 || len(got.Domains[0].Findings) != 1 || got.Domains[0].Findings[0].Process != "malware.exe" ||
		got.Domains[0].Findings[0].Signature != "Vmav.Test.Malware" {
		t.Errorf("%s: %+v", m.Build.Name, got)
	}
}
