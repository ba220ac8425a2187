package introspect

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/winstruct"
)

var update = flag.Bool("update", false, "write the support matrix into docs/WINDOWS.md")

// support is what there is of one build and architecture.
type support struct {
	exact, layout bool
	guest         bool // the test guest can be laid out as it
}

func (s support) read() string {
	switch {
	case s.exact:
		return "yes"
	case s.layout:
		return "inferred, or with a fetched profile"
	}
	return "with a fetched profile"
}

func (s support) kill(wide bool) string {
	switch {
	case !wide:
		return "no"
	case s.exact:
		return "yes"
	}
	return "with a fetched profile"
}

func (s support) verified() string {
	var by []string
	if s.exact {
		by = append(by, "public symbols")
	}
	if s.layout {
		by = append(by, "public type information")
	}
	if s.guest {
		by = append(by, "test guest", "Volatility 3")
	}
	if len(by) == 0 {
		return "nothing"
	}
	return strings.Join(by, ", ")
}

// supportMatrix is made of the profiles and layouts that are built in, and of the test guest's
// builds.
func supportMatrix(t *testing.T) []byte {
	t.Helper()
	store := winstruct.BuiltIn()
	have := map[bool]map[uint32]*support{false: {}, true: {}} // by whether it is 64-bit
	of := func(wide bool, build uint32) *support {
		if have[wide][build] == nil {
			have[wide][build] = &support{}
		}
		return have[wide][build]
	}
	for i, list := range [][]winstruct.Entry{store.List(), store.Layouts()} {
		for _, e := range list {
			p, err := store.Open(e)
			if err != nil {
				t.Fatal(err)
			}
			s := of(e.Arch == winstruct.ArchX64, uint32(p.BuildNumber()))
			s.exact, s.layout = s.exact || i == 0, s.layout || i == 1
		}
	}
	wide, err := ntguest.Builds()
	if err != nil {
		t.Fatal(err)
	}
	narrow, err := ntguest.Builds32()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range append(wide, narrow...) {
		of(!b.X86, uint32(b.Number)).guest = true
	}
	var out bytes.Buffer
	fmt.Fprintln(&out, "| Windows | build | bits | read and scan | kill | known and tested by |")
	fmt.Fprintln(&out, "| --- | --- | --- | --- | --- | --- |")
	for _, build := range slices.Sorted(maps.Keys(releases)) {
		both := releases[build]
		names := slices.DeleteFunc(both[:], func(n string) bool { return n == "" })
		for _, wide := range []bool{true, false} {
			s := have[wide][build]
			switch {
			case s == nil && (!wide || build == 2600): // 64-bit XP is of 3790
				continue
			case s == nil:
				s = &support{}
			}
			bits := 32
			if wide {
				bits = 64
			}
			fmt.Fprintf(&out, "| %s | %d | %d | %s | %s | %s |\n", strings.Join(names, ", "), build, bits, s.read(), s.kill(wide), s.verified())
		}
	}
	return out.Bytes()
}

// The support matrix in docs/WINDOWS.md is that of the profiles and test guests that there are.
// With -update it is written anew.
func TestSupportMatrix(t *testing.T) {
	const file, begin, end = "../../docs/WINDOWS.md", "<!-- support matrix -->\n", "<!-- end -->\n"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := bytes.Cut(text, []byte(begin))
	old, tail, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		t.Fatalf("%s has no support matrix", file)
	}
	want := supportMatrix(t)
	if bytes.Equal(old, want) {
		return
	}
	if !*update {
		t.Fatalf("%s has another support matrix than the profiles and guests make; go test ./internal/introspect -run SupportMatrix -update writes it", file)
	}
	all := slices.Concat(head, []byte(begin), want, []byte(end), tail)
	if err := os.WriteFile(file, all, 0o644); err != nil {
		t.Fatal(err)
	}
}
