package introspect

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/winstruct"
)

// layoutFiles opens every layout: those that are built in and, where there are any beside
// this checkout, those that others made.
func layoutFiles(t *testing.T) map[string]*winstruct.Profile {
	t.Helper()
	out := make(map[string]*winstruct.Profile)
	store := winstruct.BuiltIn()
	for _, e := range store.Layouts() {
		p, err := store.Open(e)
		if err != nil {
			t.Errorf("%s: %v", e.Name, err)
			continue
		}
		out[e.Name] = p
	}
	if len(out) != 29 {
		t.Errorf("%d layouts are built in, want 29", len(out))
	}
	for _, up := range []string{"../../../", "../../../../"} {
		files, err := filepath.Glob(up + "shared/layouts/x*.json")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			p, err := winstruct.Open(file)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			out[file] = p
		}
	}
	return out
}

// gone are the members that introspection can do without, and that builds from some number
// on do not have. Every 64-bit layout has the others.
var gone = map[string]int{"_MM_SESSION_SPACE.SessionId": 26100, "_MMVAD.ControlArea": 6000}

// Every layout of a build without symbols has all that reading a guest takes but them. What
// it lacks of the rest is named, and is what that build is known to lack.
func TestLayoutsHaveEveryOffset(t *testing.T) {
	for name, p := range layoutFiles(t) {
		required, optional := winstruct.Absent(p, Offsets{})
		if len(required) > 0 {
			t.Errorf("%s lacks %s", name, strings.Join(required, ", "))
		}
		if _, err := compileOffsets(p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		optional = slices.DeleteFunc(optional, func(fact string) bool { return strings.HasPrefix(fact, "sym(") })
		if p.Arch != winstruct.ArchX64 {
			continue
		}
		t.Logf("%s: not there: %v", name, optional)
		var want []string
		for fact, since := range gone {
			if p.BuildNumber() >= since {
				want = append(want, fact)
			}
		}
		slices.Sort(optional)
		slices.Sort(want)
		if !slices.Equal(optional, want) {
			t.Errorf("%s lacks %v, want %v", name, optional, want)
		}
	}
}

// A layout is of no image, and never counts as the profile of one.
func TestLayoutsAreNoProfiles(t *testing.T) {
	store := winstruct.BuiltIn()
	for _, e := range store.Layouts() {
		p, err := store.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		if p.GUID != winstruct.NoGUID || len(p.Symbols()) != 0 {
			t.Errorf("%s: GUID %s, %d symbols", e.Version, p.GUID, len(p.Symbols()))
		}
		if err := Usable(p); err == nil {
			t.Errorf("%s counts as a profile", e.Version)
		}
		if q, err := store.Find(p.Identity); err == nil {
			t.Errorf("%s is found as the profile of an image: %s", e.Version, q.Version)
		}
	}
}
