package hook

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/watch"
)

func TestEventsOfAStartAloneAreKept(t *testing.T) {
	for _, tt := range []struct {
		args []string
		kept bool
	}{
		{[]string{"win", "prepare", "begin", "-"}, false},
		{[]string{"win", "start", "begin", "-"}, false},
		{[]string{"win", "started", "begin", "-"}, true},
		{[]string{"win", "stopped", "end", "-"}, false},
		{[]string{"win", "release", "end", "-"}, false},
		{[]string{"win", "migrate", "begin", "-"}, false},
		{[]string{"win", "restore", "begin", "-"}, false},
		{[]string{"win", "reconnect", "begin", "-"}, false},
		{[]string{"win", "attach", "begin", "-"}, true},
		{[]string{"../../etc/passwd", "started", "begin", "-"}, true},
		{[]string{"-a", "started", "begin"}, true},
		{[]string{strings.Repeat("x", 5000), "started", "begin", "-"}, false},
		{[]string{"\xff\xfe", "started", "begin", "-"}, false},
		{[]string{"", "started", "begin", "-"}, false},
		{[]string{"win"}, false},
		{nil, false},
	} {
		spool := filepath.Join(t.TempDir(), "state", "spool")
		started := 0
		in := bytes.NewReader(make([]byte, 100000))
		Run(tt.args, in, Options{Runtime: t.TempDir(), Spool: spool, Start: func() error { started++; return errors.New("cannot") }})
		if in.Len() > 0 {
			t.Errorf("%q: %d bytes of the XML are left", tt.args, in.Len())
		}
		events, err := List(spool)
		if err != nil {
			t.Fatal(err)
		}
		if kept := len(events) == 1 && started == 1; kept != tt.kept {
			t.Errorf("%q: kept %d, started %d scans; want it kept: %v", tt.args, len(events), started, tt.kept)
		}
		for _, e := range events {
			if e.Domain != tt.args[0] {
				t.Errorf("%q is kept as %+v", tt.args, e.Hint)
			}
			e.Done()
		}
		if events, _ := List(spool); len(events) > 0 {
			t.Errorf("%q: still there when done", tt.args)
		}
	}
}

// A writer that never ends does not keep libvirt waiting for ever, nor does a panic fail it.
func TestRunEnds(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	Run([]string{"win", "started", "begin", "-"}, r, Options{Runtime: t.TempDir(), Spool: t.TempDir(), Start: func() error { panic("x") }})
}

func TestTheSpoolIsBounded(t *testing.T) {
	dir := t.TempDir()
	for range maxSpooled {
		if err := Put(dir, watch.Hint{Domain: "a", Operation: "started"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := Put(dir, watch.Hint{Domain: "a", Operation: "started"}); err == nil {
		t.Error("more than it may hold")
	}
	for name, text := range map[string]string{"1.event": "no json", "2.event": `{"domain":""}`, "3.event": strings.Repeat("x", 2*maxEvent)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "4.event")); err != nil {
		t.Fatal(err)
	}
	if events, err := List(dir); err != nil || len(events) != maxSpooled {
		t.Errorf("%d events, %v", len(events), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != maxSpooled {
		t.Errorf("%d files are left", len(left))
	}
}

func TestInstallLeavesOthersAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hooks")
	if err := os.MkdirAll(filepath.Join(dir, "qemu.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	others := map[string]string{filepath.Join(dir, "qemu"): "#!/bin/sh\necho main\n", filepath.Join(dir, "qemu.d", "10-other"): "#!/bin/sh\n"}
	for file, text := range others {
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, installed bool) {
		t.Helper()
		if (ours(Path(dir)) == nil) != installed {
			t.Errorf("%s: installed: %v", when, !installed)
		}
		n := len(others)
		if installed {
			n++
		}
		var files []string
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				files = append(files, path)
			}
			return err
		})
		if err != nil || len(files) != n {
			t.Errorf("%s: %q, %v", when, files, err)
		}
		for file, text := range others {
			if got, err := os.ReadFile(file); err != nil || string(got) != text {
				t.Errorf("%s: %s is %q, %v", when, file, got, err)
			}
		}
	}
	program := filepath.Join(t.TempDir(), "a 'program'")
	for range 2 {
		if err := Install(dir, program, map[string]string{"VMAV_X": "a'b c"}); err != nil {
			t.Fatal(err)
		}
		check("after install", true)
	}
	// The script as libvirt runs it: without the program, with one, with one that fails.
	run := func(program string, args ...string) string {
		t.Helper()
		cmd := exec.Command(Path(dir), args...)
		cmd.Stdin = strings.NewReader(strings.Repeat("<domain/>", 20000))
		out, err := cmd.CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v: %v, printed %q", program, args, err, out)
		}
		return string(out)
	}
	// What is not there is not what is there in a moment: nobody waits for the script's work.
	if err := Install(dir, program+" that is missing", nil); err != nil {
		t.Fatal(err)
	}
	run("no program", "win", "started", "begin", "-")
	if err := Install(dir, program, map[string]string{"VMAV_X": "a'b c"}); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	text := "#!/bin/sh\ncat >/dev/null\necho out; echo err >&2\necho \"$VMAV_X $@\" >>" + log + "\nexit 3\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	run("failing program", "win dows", "started", "begin", "-")
	run("failing program", "win", "prepare", "begin", "-")
	var got []byte
	for range 500 { // it is not waited for
		if got, _ = os.ReadFile(log); len(got) > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if string(got) != "a'b c hook run win dows started begin -\n" {
		t.Errorf("the program was run with %q", got)
	}
	if err := os.WriteFile(program, []byte("\x7fELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	run("broken program", "win", "started", "begin", "-")

	for range 2 {
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
		check("after remove", false)
	}
	others[Path(dir)] = "#!/bin/sh\n# somebody's vmav\n"
	if err := os.WriteFile(Path(dir), []byte(others[Path(dir)]), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Install(dir, program, nil); err == nil {
		t.Error("replaced another's file")
	}
	if err := Remove(dir); err == nil {
		t.Error("removed another's file")
	}
	check("after another's file", false)
}

// What is started keeps nothing that this process has open.
func TestDetachInheritsNothing(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// As one that libvirt left open: no close-on-exec.
	dup := exec.Command("/bin/sh", "-c", `exec "$0" -test.run '^TestHelperDetaches$' 9>&3`, os.Args[0])
	out := filepath.Join(t.TempDir(), "fds")
	dup.Env = append(os.Environ(), "VMAV_TEST_DETACH="+out)
	dup.ExtraFiles = []*os.File{w}
	text, err := dup.CombinedOutput()
	w.Close()
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if _, err := io.ReadAll(r); err != nil { // ends only when nobody has the other end
		t.Fatal(err)
	}
	var fds []byte
	for range 500 {
		if fds, err = os.ReadFile(out); err == nil && bytes.Contains(fds, []byte("end")) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	// The descriptors are those of ls itself: 0 to 2 and the directory.
	if got := strings.Fields(string(fds)); len(got) != 5 || got[0] != "0" || got[3] != "3" {
		t.Errorf("the child has descriptors %q", got)
	}
}

func TestHelperDetaches(t *testing.T) {
	out := os.Getenv("VMAV_TEST_DETACH")
	if out == "" {
		t.Skip("only for another test")
	}
	if err := Detach("/bin/sh", "-c", `ls /proc/self/fd >"$0.new"; echo end >>"$0.new"; mv "$0.new" "$0"`, out); err != nil {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("win", "started", "begin", "-", []byte(`{"domain":"a","operation":"started"}`))
	f.Add("", "\x00", strings.Repeat("a", 70000), "<xml>", []byte("{"))
	f.Fuzz(func(t *testing.T, name, op, sub, extra string, spooled []byte) {
		h, err := Parse([]string{name, op, sub, extra})
		if err != nil && h != (watch.Hint{}) {
			t.Errorf("an error and %+v", h)
		}
		if err == nil && (h.Domain != name || h.Check() != nil) {
			t.Errorf("%q became %+v", name, h)
		}
		if h, err := decode(spooled); err != nil && h != (watch.Hint{}) {
			t.Errorf("an error and %+v", h)
		}
	})
}
