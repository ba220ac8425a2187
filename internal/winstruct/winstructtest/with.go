package winstructtest

import (
	"bytes"

	"vmav.dev/vmav/internal/winstruct"
)

// With is a store with one more profile.
type With struct {
	*winstruct.Store
	Profile *winstruct.Profile
}

// Find returns the profile of a build.
func (w With) Find(id winstruct.Identity) (*winstruct.Profile, error) {
	if id == w.Profile.Identity {
		return w.Profile, nil
	}
	return w.Store.Find(id)
}

// FindPacked returns the file of a build's profile.
func (w With) FindPacked(id winstruct.Identity) ([]byte, error) {
	if id != w.Profile.Identity {
		return w.Store.FindPacked(id)
	}
	var b bytes.Buffer
	err := w.Profile.Save(&b)
	return b.Bytes(), err
}
