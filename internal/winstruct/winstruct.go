// Package winstruct knows the layout of Windows kernel structures, build by
// build. A Profile holds the structures, enumerations and symbols of one kernel
// build; it is found by the Identity that the kernel image carries in its debug
// record.
//
// Profiles are vtypes definitions plus symbols plus metadata. Hot paths do not
// interpret them: Compile resolves the offsets a reader needs into a plain Go
// struct once. The package imports no other package of the project.
package winstruct

import (
	"errors"
	"fmt"
	"strings"
)

// Identity names one build of one kernel image, as its CodeView RSDS debug
// record does.
type Identity struct {
	PDB  string `json:"pdb"`  // file name without a path, lower case: "ntkrnlmp.pdb"
	GUID string `json:"guid"` // 32 upper-case hexadecimal digits
	Age  uint32 `json:"age"`
}

// Key is the identity as symbol servers write it: GUID followed by the age in
// hexadecimal.
func (id Identity) Key() string { return fmt.Sprintf("%s%X", strings.ToUpper(id.GUID), id.Age) }

func (id Identity) String() string { return id.PDB + " " + id.Key() }

// ErrNoProfile is wrapped by MissingError.
var ErrNoProfile = errors.New("no profile for this kernel build")

// MissingError reports a kernel whose profile no layer of the store has. Its text
// names the command that adds one.
type MissingError struct{ Identity Identity }

func (e *MissingError) Error() string {
	return fmt.Sprintf("no profile for %s, GUID %s, age %d; its symbol file adds one: vmav profile import %s-%d.json.xz",
		e.Identity.PDB, e.Identity.GUID, e.Identity.Age, e.Identity.GUID, e.Identity.Age)
}

func (e *MissingError) Unwrap() error { return ErrNoProfile }

// Finder finds the profile of a kernel build, or fails with a *MissingError.
type Finder interface {
	Find(Identity) (*Profile, error)
}
