package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
)

// A mapped form saved by dump --raw and rebuilt is what dump rebuilds, which is the file
// that the guest loaded, byte for byte.
func TestDumpAndRebuildGiveTheFile(t *testing.T) {
	dir := t.TempDir()
	image, m := laidOut(t, ntguest.Options{Build: "10.0.19041", Seed: 2})
	vmav := func(want int, args ...string) string { return runVmav(t, want, args...) }
	for _, p := range m.Truth.Processes {
		if p.Name != "spin.exe" {
			continue
		}
		pid := fmt.Sprint(p.PID)
		for _, mod := range p.Modules {
			whole, raw, again := filepath.Join(dir, "whole"), filepath.Join(dir, "raw"), filepath.Join(dir, "again")
			vmav(0, "dump", "-a", image, pid, "--module", mod.Name, "-o", whole)
			vmav(0, "dump", "-a", image, pid, "--module", mod.Name, "-o", raw, "--raw")
			want, err := os.ReadFile("../../bin/ntguest.d/" + mod.File)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := os.ReadFile(whole)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: dump differs from the file", mod.Name)
			}
			vmav(0, "rebuild", raw, "--base", fmt.Sprintf("%#x", mod.Base), "-o", again)
			if got, _ = os.ReadFile(again); len(got) != len(want) {
				t.Errorf("%s: rebuild gives %d bytes, the file has %d", mod.Name, len(got), len(want))
			}
			if out := vmav(2, "rebuild", raw, "--base", fmt.Sprintf("%#x", mod.Base), "--missing", "0x1000-0x2000", "-o", again); !bytes.Contains([]byte(out),
				[]byte("rebuilt from")) {
				t.Errorf("%s: with a page missing: %s", mod.Name, out)
			}
		}
		return
	}
	t.Fatal("the guest has no spin.exe")
}
