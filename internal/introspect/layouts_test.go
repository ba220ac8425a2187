package introspect

import (
	"testing"

	"vmav.dev/vmav/internal/winstruct"
)

// Every layout of a build without symbols has all that reading a guest takes but them.
func TestLayoutsHaveEveryOffset(t *testing.T) {
	store := winstruct.BuiltIn()
	layouts := store.Layouts()
	if len(layouts) != 25 {
		t.Errorf("%d layouts, want 25", len(layouts))
	}
	for _, e := range layouts {
		if e.Err != nil {
			t.Errorf("%s: %v", e.Name, e.Err)
			continue
		}
		p, err := store.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := compileOffsets(p); err != nil {
			t.Errorf("%s: %v", e.Version, err)
		}
		if p.Arch != winstruct.ArchX86 || p.GUID != winstruct.NoGUID || len(p.Symbols()) != 0 {
			t.Errorf("%s: %s, GUID %s, %d symbols", e.Version, p.Arch, p.GUID, len(p.Symbols()))
		}
		if err := Usable(p); err == nil {
			t.Errorf("%s counts as a profile", e.Version)
		}
		if q, err := store.Find(p.Identity); err == nil {
			t.Errorf("%s is found as the profile of an image: %s", e.Version, q.Version)
		}
	}
}
