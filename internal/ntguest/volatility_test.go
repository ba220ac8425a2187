package ntguest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// Volatility 3 knows nothing of this project. Given the symbols of the build, it must
// see in the guest's memory what the truth says. The test needs a checkout of it at
// $VOLATILITY3 and symbol files at $VOLATILITY3_SYMBOLS (docs/TESTING.md).
func TestVolatilityAgrees(t *testing.T) {
	vol, symbols := os.Getenv("VOLATILITY3"), os.Getenv("VOLATILITY3_SYMBOLS")
	if vol == "" || symbols == "" {
		t.Skip("no independent reader: VOLATILITY3 and VOLATILITY3_SYMBOLS are not set (docs/TESTING.md)")
	}
	for _, build := range builds {
		t.Run(build, func(t *testing.T) {
			m := lay(t, Options{Build: build, Seed: 11})
			file := filepath.Join(t.TempDir(), "guest.raw")
			if err := m.Save(file); err != nil {
				t.Fatal(err)
			}
			v := volatility{t, vol, symbols, file}
			v.compare(m.Truth)
			v.tokens(m.b)
		})
	}
}

// The same for builds of which only a layout is known. Their kernels are the guest's own, so
// that the symbols that Volatility 3 is given are made here; $VOLATILITY3 alone is needed.
func TestVolatilityAgreesOnLayouts(t *testing.T) {
	vol := os.Getenv("VOLATILITY3")
	if vol == "" {
		t.Skip("no independent reader: VOLATILITY3 is not set (docs/TESTING.md)")
	}
	var names []string
	for _, b := range builds32 {
		names = append(names, b.name)
	}
	for _, b := range builds64 {
		names = append(names, b.name)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			m := lay(t, Options{Build: name, Seed: 11, MemoryMiB: 256})
			dir := t.TempDir()
			writeISF(t, dir, m.Profile())
			file := filepath.Join(dir, "guest.raw")
			if err := m.Save(file); err != nil {
				t.Fatal(err)
			}
			v := volatility{t, vol, dir, file}
			v.compare(m.Truth)
			v.tokens(m.b)
		})
	}
}

type volatility struct {
	t                  *testing.T
	dir, symbols, file string
}

type volRow map[string]any

// run returns the rows of a plug-in, those of a tree with their children.
func (v volatility) run(plugin string) []volRow {
	v.t.Helper()
	cmd := exec.Command("/usr/bin/python3", filepath.Join(v.dir, "vol.py"), "-q", "-s", v.symbols, "-r", "json", "-f", v.file, "windows."+plugin)
	out, err := cmd.Output()
	if err != nil {
		v.t.Fatalf("windows.%s: %v\n%s", plugin, err, out)
	}
	var rows []volRow
	if err := json.Unmarshal(out, &rows); err != nil {
		v.t.Fatalf("windows.%s: %v", plugin, err)
	}
	var all []volRow
	var flatten func(rows []volRow)
	flatten = func(rows []volRow) {
		for _, r := range rows {
			all = append(all, r)
			if kids, ok := r["__children"].([]any); ok {
				for _, k := range kids {
					flatten([]volRow{k.(map[string]any)})
				}
			}
		}
	}
	flatten(rows)
	return all
}

func (v volatility) same(plugin string, got, want []string) {
	v.t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		for _, g := range got {
			if !slices.Contains(want, g) {
				v.t.Errorf("windows.%s alone has %s", plugin, g)
			}
		}
		for _, w := range want {
			if !slices.Contains(got, w) {
				v.t.Errorf("windows.%s lacks %s", plugin, w)
			}
		}
	}
	v.t.Logf("windows.%s: %d rows", plugin, len(got))
}

// num prints a JSON number, an address without its sign extension; absent is "-".
func num(x any) string {
	f, ok := x.(float64)
	if !ok {
		return "-"
	}
	return fmt.Sprint(uint64(f))
}

func (v volatility) compare(truth *Truth) {
	info := make(map[string]string)
	for _, r := range v.run("info") {
		info[fmt.Sprint(r["Variable"])] = fmt.Sprint(r["Value"])
	}
	const address = 1<<48 - 1
	if got, want := info["Kernel Base"], fmt.Sprintf("%#x", truth.Kernel.Base&address); got != want {
		v.t.Errorf("windows.info: kernel base %s, want %s", got, want)
	}
	if got, want := info["DTB"], fmt.Sprintf("%#x", truth.Kernel.DTB); got != want {
		v.t.Errorf("windows.info: DTB %s, want %s", got, want)
	}
	for _, plugin := range []string{"pslist", "psscan"} {
		var got, want []string
		for _, r := range v.run(plugin) {
			got = append(got, fmt.Sprint(num(r["PID"]), num(r["PPID"]), r["ImageFileName"], num(r["Threads"]), num(r["SessionId"]), r["Wow64"],
				r["ExitTime"] != nil))
		}
		for _, p := range truth.Processes {
			session := "-"
			if p.Session >= 0 {
				session = fmt.Sprint(p.Session)
			}
			want = append(want, fmt.Sprint(fmt.Sprint(p.PID), fmt.Sprint(p.PPID), p.Name, fmt.Sprint(p.Threads), session, p.Wow64, p.Exited != nil))
		}
		v.same(plugin, got, want)
	}
	var got, want []string
	for _, r := range v.run("pstree") {
		got = append(got, num(r["PID"])+" "+num(r["PPID"]))
	}
	for _, p := range truth.Processes {
		want = append(want, fmt.Sprint(p.PID, " ", p.PPID))
	}
	v.same("pstree", got, want)
	v.modules(truth)
	v.vads(truth)
	v.handles(truth)
}

func (v volatility) modules(truth *Truth) {
	var got, want []string
	for _, r := range v.run("dlllist") {
		if r["Base"] != nil {
			got = append(got, fmt.Sprint(num(r["PID"]), " ", num(r["Base"]), " ", num(r["Size"]), " ", r["Name"], " ", r["Path"]))
		}
	}
	for _, p := range truth.Processes {
		for _, m := range p.Modules {
			// dlllist reads the 64-bit lists, which have the program of a wow64 process
			// and none of its other 32-bit modules.
			if m.Wow64 && m.Name != baseName(p.Path) {
				continue
			}
			want = append(want, fmt.Sprint(p.PID, " ", m.Base, " ", m.Size, " ", m.Name, " ", m.Path))
		}
	}
	v.same("dlllist", got, want)
	got, want = nil, nil
	for _, r := range v.run("modules") {
		got = append(got, fmt.Sprint(num(r["Base"]), " ", num(r["Size"]), " ", r["Name"], " ", r["Path"]))
	}
	for _, m := range truth.Drivers {
		want = append(want, fmt.Sprint(m.Base&(1<<48-1), " ", m.Size, " ", m.Name, " ", m.Path))
	}
	v.same("modules", got, want)
}

func (v volatility) vads(truth *Truth) {
	var got, want []string
	for _, r := range v.run("vadinfo") {
		file := fmt.Sprint(r["File"])
		if r["File"] == nil || file == "N/A" {
			file = ""
		}
		got = append(got, fmt.Sprint(num(r["PID"]), " ", num(r["Start VPN"]), " ", num(r["End VPN"]), " ", num(r["PrivateMemory"]), " ", file))
	}
	for _, p := range truth.Processes {
		for _, x := range p.VADs {
			want = append(want, fmt.Sprint(p.PID, " ", x.Start, " ", x.End, " ", boolBit(x.Private), " ", x.Path))
		}
	}
	v.same("vadinfo", got, want)
}

// tokens are compared by every SID in them.
func (v volatility) tokens(b *builder) {
	var got, want []string
	for _, r := range v.run("getsids") {
		got = append(got, fmt.Sprint(num(r["PID"]), " ", r["SID"]))
	}
	for _, p := range b.procs {
		account := b.account(p.spec)
		want = append(want, fmt.Sprint(p.pid, " ", account))
		for _, g := range b.tokenFacts(account).groups {
			want = append(want, fmt.Sprint(p.pid, " ", g.sid))
		}
	}
	v.same("getsids", got, want)
}

// handles are compared by kind: every running process has one to each of its threads,
// and those with a program one to its file.
func (v volatility) handles(truth *Truth) {
	var got, want []string
	for _, r := range v.run("handles") {
		if k := fmt.Sprint(r["Type"]); k == "Thread" || k == "File" {
			got = append(got, num(r["PID"])+" "+k)
		}
	}
	for _, p := range truth.Processes {
		if p.Exited != nil {
			continue
		}
		for range p.TIDs {
			want = append(want, fmt.Sprint(p.PID, " Thread"))
		}
		if len(p.Modules) > 0 {
			want = append(want, fmt.Sprint(p.PID, " File"))
		}
	}
	v.same("handles", got, want)
}
