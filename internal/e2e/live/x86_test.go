package live

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
)

// forms32 are the 32-bit guests: without PAE and with it, each with and without KVA shadow.
var forms32 = []struct {
	build string
	more  []string
}{
	{"6.1.7601-x86", nil},
	{"6.1.7601-x86", []string{"--kva-shadow"}},
	{"6.1.7601-x86-pae", []string{"--3gb"}},
	{"10.0.19041-x86", nil},
	{"10.0.19041-x86", []string{"--kva-shadow"}},
}

// start32 boots a 32-bit guest, whose profile the user imports.
func start32(t *testing.T, build string, more ...string) *harness.Guest {
	t.Helper()
	profile := filepath.Join(t.TempDir(), "profile.json")
	g := harness.Start(t, build, append([]string{"--profile", profile}, more...)...)
	if out, errs, status := harness.Vmav(t, "profile", "import", profile); status != 0 {
		t.Fatalf("profile import: status %d, %s%s", status, out, errs)
	}
	return g
}

// 32-bit guests that run are listed as they say themselves, live and from a dump, are scanned, and are
// read at any moment.
func TestRunning32BitGuests(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir()) // where profiles are imported to
	for _, form := range forms32 {
		t.Run(strings.Join(append([]string{form.build}, form.more...), " "), func(t *testing.T) {
			t.Parallel()
			g := start32(t, form.build, form.more...)
			g.Say("pause", "CHURN 0")
			g.Say("freeze", "FROZEN 1")
			want := g.Truth()
			harness.Compare(t, want, g.Name, "-c", harness.URI)
			core := filepath.Join(harness.OpenDir(t), "guest.core")
			harness.Virsh(t, "dump", "--memory-only", "--live", g.Name, core)
			if err := os.Chmod(core, 0o644); err != nil {
				t.Fatal(err)
			}
			harness.Compare(t, want, "-a", core)
			g.Say("thaw", "FROZEN 0")
			scanFindsTheMalware(t, g)
			everyMoment(t, g)
		})
	}
}

func scanFindsTheMalware(t testing.TB, g *harness.Guest) {
	t.Helper()
	var got scanResult
	harness.Decode(t, &got, 1, "scan", "-c", harness.URI, g.Name, "-d", harness.Database(t))
	if len(got.Domains) != 1 {
		t.Fatalf("%d domains", len(got.Domains))
	}
	d := got.Domains[0]
	for _, e := range d.Errors {
		t.Errorf("%s: %s", e.What, e.Error)
	}
	malware := false
	for _, f := range d.Findings {
		malware = malware || f.Process == "malware.exe" && f.Signature == "Vmav.Test.Malware"
		if f.Process != "malware.exe" && f.Process != "packed.exe" {
			t.Errorf("finding %+v", f)
		}
	}
	if !malware {
		t.Errorf("the malware is not among the findings %+v", d.Findings)
	}
}
