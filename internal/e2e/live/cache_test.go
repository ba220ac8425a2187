package live

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/finding"
)

// TestScansRemember scans a memory image again and again, by processes of their own: what
// an earlier one has seen is not rebuilt or scanned, until the signatures are others, the
// memory is another, or the user says so. A damaged cache is made anew.
func TestScansRemember(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	t.Setenv(harness.StateVariable, state)
	image := filepath.Join(t.TempDir(), "guest.raw")
	if out, err := exec.Command(harness.Bin(t, "ntguest"), "image", "--out", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	db := harness.Database(t)
	scan := func(warning string, more ...string) finding.Scan {
		t.Helper()
		out, errs, status := harness.Vmav(t, append([]string{"scan", "-a", image, "-d", db, "--format", "json"}, more...)...)
		if status != 1 || warning == "" && errs != "" || !strings.Contains(errs, warning) {
			t.Errorf("status %d, stderr %q, want %q", status, errs, warning)
		}
		var got finding.Sweep
		if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Domains) != 1 {
			t.Fatalf("%v in %q", err, out)
		}
		for i := range got.Domains[0].Findings {
			got.Domains[0].Findings[i].ID = 0 // each has a record of its own
		}
		return got.Domains[0]
	}
	first := scan("")
	if first.Files == 0 || len(first.Findings) == 0 {
		t.Fatalf("%+v", first)
	}
	// alike says that a scan tells the same as the first; known, whether it knew all.
	alike := func(what string, d finding.Scan, known bool) {
		t.Helper()
		if !reflect.DeepEqual(d.Findings, first.Findings) || d.Images != first.Images || d.Status != first.Status {
			t.Errorf("%s: %+v, want %+v", what, d, first)
		}
		if known != (d.Files == 0 && d.Unchanged >= d.Images-len(d.Findings)) || !known && d.Files == 0 {
			t.Errorf("%s: %d files scanned, %d of %d images recognised", what, d.Files, d.Unchanged, d.Images)
		}
	}
	alike("again", scan(""), true)
	alike("without the cache", scan("", "--no-cache"), false)

	text, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(db, append(text, fmt.Sprintf("Vmav.Test.Nothing:1:*:%x\n", "A-MARKER-THAT-NOBODY-HAS")...), 0o644); err != nil {
		t.Fatal(err)
	}
	alike("other signatures", scan(""), false)
	alike("other signatures, again", scan(""), true)
	if err := os.WriteFile(db, text, 0o644); err != nil {
		t.Fatal(err)
	}
	alike("the first signatures", scan(""), true)

	// A byte of a program in the image: the marker that the signature knows, gone.
	memory, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	clean := bytes.ReplaceAll(memory, []byte("VMAV-TEST-MALWARE"), []byte("VMAV-TEST-NOTHING"))
	if err := os.WriteFile(image, clean, 0o644); err != nil {
		t.Fatal(err)
	}
	out, _, status := harness.Vmav(t, "scan", "-a", image, "-d", db, "--format", "jsonl")
	if strings.Contains(out, "Vmav.Test.Malware") {
		t.Errorf("status %d: %s", status, out)
	}
	if err := os.WriteFile(image, memory, 0o644); err != nil {
		t.Fatal(err)
	}
	alike("as it was", scan(""), true)

	file := filepath.Join(state, "cache.db")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for at := 4096; at < len(content); at += 1000 {
		content[at] ^= 0x55
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	alike("damaged", scan("damaged"), false)
	scan("") // it is made anew
	alike("made anew", scan(""), true)
}
