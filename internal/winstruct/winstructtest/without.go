package winstructtest

import "vmav.dev/vmav/internal/winstruct"

// Without is a store without the profile of one build.
type Without struct {
	*winstruct.Store
	Identity winstruct.Identity
}

// Find implements winstruct.Finder.
func (w Without) Find(id winstruct.Identity) (*winstruct.Profile, error) {
	if id == w.Identity {
		return nil, &winstruct.MissingError{Identity: id}
	}
	return w.Store.Find(id)
}

// Near returns the store's near profiles without that of the build.
func (w Without) Near(version string) (out []winstruct.Entry) {
	for _, e := range w.Store.Near(version) {
		if e.Identity != w.Identity {
			out = append(out, e)
		}
	}
	return out
}

// FindPacked returns the file of a build's profile, unless it is that of the build left
// out.
func (w Without) FindPacked(id winstruct.Identity) ([]byte, error) {
	if id == w.Identity {
		return nil, &winstruct.MissingError{Identity: id}
	}
	return w.Store.FindPacked(id)
}
