package introspect

import (
	"testing"

	"vmav.dev/vmav/internal/winstruct"
)

// Every built-in profile has what introspection needs.
func TestEveryBuiltInProfileServes(t *testing.T) {
	store := winstruct.BuiltIn()
	for _, e := range store.List() {
		p, err := store.Find(e.Identity)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := compile(p); err != nil {
			t.Errorf("%s: %v", e.Version, err)
		}
	}
}
