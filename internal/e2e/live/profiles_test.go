package live

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/cab/cabtest"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// unknown is a vmav that was built without the profile of one build, a guest of that
// build, and the environment of a user who has no profiles of his own.
type unknown struct {
	vmav  string
	image string
	id    winstruct.Identity
	env   []string
}

func withoutProfile(t *testing.T, version string) *unknown {
	t.Helper()
	dir := t.TempDir()
	u := &unknown{vmav: filepath.Join(dir, "vmav"), image: filepath.Join(dir, "guest.raw")}
	for _, e := range winstruct.BuiltIn().List() {
		if e.Version == version {
			u.id = e.Identity
			builtin, err := filepath.Abs("../../winstruct/builtin/" + e.Name)
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(map[string]map[string]string{"Replace": {builtin: ""}})
			if err != nil {
				t.Fatal(err)
			}
			overlay := filepath.Join(dir, "overlay.json")
			if err := os.WriteFile(overlay, text, 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("go", "build", "-overlay", overlay, "-o", u.vmav, "vmav.dev/vmav/cmd/vmav").CombinedOutput(); err != nil {
				t.Fatalf("build a vmav without the profile of %s: %v\n%s", version, err, out)
			}
		}
	}
	build := strings.Join(strings.Split(version, ".")[:3], ".")
	if out, err := exec.Command(harness.Bin(t, "ntguest"), "image", "--build", build, "--hide", "malware.exe", "--out", u.image).CombinedOutput(); err != nil {
		t.Fatalf("ntguest: %v\n%s", err, out)
	}
	u.env = append(os.Environ(), "XDG_DATA_HOME="+filepath.Join(dir, "data"), "XDG_CACHE_HOME="+filepath.Join(dir, "cache"), "_NT_SYMBOL_PATH=",
		"VMAV_AIR_GAPPED=")
	return u
}

func (u *unknown) run(t *testing.T, program string, more []string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(u.env, more...)
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errb.String(), cmd.ProcessState.ExitCode()
}

// scanned is what these tests look at of a scan.
type scanned struct {
	Domains []struct {
		Status, Profile, Missing string
		InferredFrom             string `json:"inferred_from"`
		Processes, Images        int
		Findings                 []struct {
			PID              uint64
			Image, Signature string
		}
		Errors []struct{ What, Error string }
	}
}

func (u *unknown) scan(t *testing.T, program string, want int, args ...string) scanned {
	t.Helper()
	out, errs, status := u.run(t, program, nil, append([]string{"scan", "-a", u.image, "--format", "json", "-d", harness.Database(t)}, args...)...)
	var s scanned
	if err := json.Unmarshal([]byte(out), &s); err != nil || status != want || len(s.Domains) != 1 {
		t.Fatalf("scan %v: status %d, want %d, %v\n%s", args, status, want, err, errs)
	}
	return s
}

// A build that vmav does not know: it is named with the command that helps; read with the
// offsets of a near build the guest gives the same processes and findings, marked; and
// the symbol server's file gives what the built-in profile gave.
func TestABuildWithoutAProfile(t *testing.T) {
	t.Parallel()
	u := withoutProfile(t, "10.0.19041.1237")
	exact := harness.Bin(t, "vmav")

	out, errs, status := u.run(t, u.vmav, nil, "ps", "-a", u.image, "--exact-profile")
	if command := "vmav profile fetch " + u.id.String(); status != 2 || out != "" || !strings.Contains(errs, u.id.GUID) || !strings.Contains(errs, command) {
		t.Errorf("--exact-profile: status %d, %q, %q; want the missing build and %q", status, out, errs, command)
	}

	type process struct {
		PID, PPID          uint64
		Name, Path         string
		DTB, EPROCESS, PEB harness.Number
		Flags              []string
	}
	list := func(program string) (out []process, errs string) {
		text, errs, status := u.run(t, program, nil, "ps", "-a", u.image, "--format", "json")
		if err := json.Unmarshal([]byte(text), &out); err != nil || status != 0 || len(out) < 40 {
			t.Fatalf("ps: status %d, %v, %d processes\n%s", status, err, len(out), errs)
		}
		return out, errs
	}
	want, _ := list(exact)
	got, errs := list(u.vmav)
	if !strings.Contains(errs, "inferred from Windows 10.0.19041.") || !strings.Contains(errs, u.id.Key()) {
		t.Errorf("ps says %q of the profile that it infers", errs)
	}
	for i := range got {
		n := slices.Index(got[i].Flags, "inferred")
		if n < 0 {
			t.Errorf("pid %d is not marked as inferred", got[i].PID)
			continue
		}
		got[i].Flags = slices.Delete(got[i].Flags, n, n+1)
	}
	if a, b := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); a != b {
		t.Errorf("processes\n%s\nwant\n%s", a, b)
	}

	known, inferred := u.scan(t, exact, 1), u.scan(t, u.vmav, 1)
	k, d := known.Domains[0], inferred.Domains[0]
	if d.Profile != "inferred" || d.Missing != u.id.String() || !strings.HasPrefix(d.InferredFrom, "10.0.19041.") {
		t.Errorf("scan: profile %q of %q, missing %q", d.Profile, d.InferredFrom, d.Missing)
	}
	if len(d.Findings) != 1 || fmt.Sprint(d.Findings) != fmt.Sprint(k.Findings) || d.Processes != k.Processes || d.Images != k.Images || d.Status != k.Status {
		t.Errorf("scan: %+v\nwant  %+v", d, k)
	}

	store := winstruct.BuiltIn()
	p, err := store.Find(u.id)
	if err != nil {
		t.Fatal(err)
	}
	packed := cabtest.LZX(u.id.PDB, winstructtest.PDB(p), 21, false, 1<<17)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/symbols/"+u.id.PDB+"/"+u.id.Key()+"/"+strings.TrimSuffix(u.id.PDB, "b")+"_" {
			http.NotFound(w, r)
			return
		}
		w.Write(packed)
	}))
	defer server.Close()
	path := "srv*" + server.URL + "/symbols"
	_, errs, status = u.run(t, u.vmav, []string{"VMAV_AIR_GAPPED=1"}, "profile", "fetch", u.id.PDB, u.id.Key(), "--symbol-path", path)
	if status != 2 || !strings.Contains(errs, "air-gapped") {
		t.Errorf("air-gapped: status %d, %q", status, errs)
	}
	fetched := u.scan(t, u.vmav, 1, "--fetch-profiles", "--symbol-path", path).Domains[0]
	if fetched.Profile != u.id.Key() || fmt.Sprint(fetched.Findings) != fmt.Sprint(k.Findings) || fetched.Processes != k.Processes ||
		fetched.Images != k.Images {
		t.Errorf("scan with the fetched profile: %+v\nwant %+v", fetched, k)
	}
	// It is stored now: nothing is fetched or inferred any more.
	server.Close()
	if again := u.scan(t, u.vmav, 1).Domains[0]; again.Profile != u.id.Key() {
		t.Errorf("the next scan has the profile %q", again.Profile)
	}
}

// A profile goes to an air-gapped host in one signed bundle, with one command on each
// side.
func TestABundleForAnAirGappedFleet(t *testing.T) {
	t.Parallel()
	u := withoutProfile(t, "10.0.22000.978")
	dir := t.TempDir()
	key, pub, file := filepath.Join(dir, "bundle.key"), filepath.Join(dir, "bundle.pub"), filepath.Join(dir, "profiles.bundle")
	for _, args := range [][]string{{"genpkey", "-algorithm", "ed25519", "-out", key}, {"pkey", "-in", key, "-pubout", "-out", pub}} {
		if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	if _, errs, status := u.run(t, harness.Bin(t, "vmav"), nil, "profile", "export", "--all", "-o", file, "--key", key); status != 0 {
		t.Fatalf("export: status %d, %s", status, errs)
	}
	gap := []string{"VMAV_AIR_GAPPED=1"}
	if _, errs, status := u.run(t, u.vmav, gap, "profile", "import", file); status != 2 || !strings.Contains(errs, "not signed by a key that is trusted") {
		t.Errorf("import without the key: status %d, %q", status, errs)
	}
	if out, errs, status := u.run(t, u.vmav, gap, "profile", "import", file, "--trust", pub); status != 0 || !strings.Contains(out, "signature verified") {
		t.Fatalf("import: status %d, %q, %q", status, out, errs)
	}
	if d := u.scan(t, u.vmav, 1).Domains[0]; d.Profile != u.id.Key() || len(d.Findings) != 1 {
		t.Errorf("scan with the imported profile: %+v", d)
	}
}

// The offsets are proven in a guest that runs, whose processes start and end meanwhile.
func TestARunningBuildWithoutAProfile(t *testing.T) {
	t.Parallel()
	u := withoutProfile(t, "10.0.19041.1237")
	g := harness.Start(t, "10.0.19041", "--kva-shadow")
	for range 10 {
		out, errs, status := u.run(t, u.vmav, nil, "ps", "-c", harness.URI, g.Name, "--format", "json")
		var procs []struct{ Flags []string }
		if err := json.Unmarshal([]byte(out), &procs); err != nil || status != 0 || len(procs) < 40 ||
			!strings.Contains(errs, "inferred from Windows 10.0.19041.") {
			t.Errorf("status %d, %v, %d processes, %q", status, err, len(procs), errs)
		}
		if strings.Contains(errs, "PspCidTable") || strings.Contains(errs, "UserDirectoryTableBase") {
			t.Errorf("more is not proven than need be: %q", errs)
		}
	}
}
