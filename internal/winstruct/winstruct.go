// Package winstruct knows the layout of Windows kernel structures, build by build. A
// Profile has the structures, enumerations and symbols of one kernel build. It is found by
// the Identity that the kernel image has in its debug record.
//
// Profiles are vtypes definitions, symbols and metadata. Hot paths do not interpret them:
// Compile resolves the offsets that a reader needs into a plain Go struct once. Profiles
// are made from PDBs (package pdb) and from Volatility 3 symbol files, fetched from symbol
// servers (symsrv), and carried to other hosts (bundle). A pack has what readers need of
// many kernels in one file (KernelPack). The packages of this tree import no other package
// of the project.
package winstruct

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Identity names one build of one kernel image, as its CodeView RSDS debug
// record does.
type Identity struct {
	PDB  string `json:"pdb"`  // file name without a path, lower case: "ntkrnlmp.pdb"
	GUID string `json:"guid"` // 32 upper-case hexadecimal digits
	Age  uint32 `json:"age"`
}

// NoGUID is the GUID of a layout: the structures of a version of Windows without the
// symbols of a particular image. Layouts are used to infer profiles, and are found by
// version only.
const NoGUID = "00000000000000000000000000000000"

// Key returns the identity as symbol servers write it: the GUID followed by the age in
// hexadecimal.
func (id Identity) Key() string { return fmt.Sprintf("%s%X", strings.ToUpper(id.GUID), id.Age) }

// ParseIdentity makes an identity from the name of a PDB and a key as Key returns it.
func ParseIdentity(pdb, key string) (Identity, error) {
	if len(key) <= 32 {
		return Identity{}, fmt.Errorf("%q is no id of a build: it is the GUID in 32 hexadecimal digits with the age behind it", key)
	}
	age, err := strconv.ParseUint(key[32:], 16, 32)
	if err != nil {
		return Identity{}, fmt.Errorf("%q is no id of a build: its age is %q", key, key[32:])
	}
	id := Identity{PDB: strings.ToLower(pdb), GUID: strings.ToUpper(key[:32]), Age: uint32(age)}
	return id, id.Check()
}

// String implements fmt.Stringer.
func (id Identity) String() string { return id.PDB + " " + id.Key() }

// ErrNoProfile is wrapped by MissingError.
var ErrNoProfile = errors.New("no profile for this kernel build")

// MissingError reports a kernel build whose profile no layer of the store has. Its text
// names the command that adds one.
type MissingError struct {
	Identity Identity
	Unread   error // packs that may have it, but cannot be read; nil for none
}

// Error implements error.
func (e *MissingError) Error() string {
	unread := ""
	if e.Unread != nil {
		unread = ", and it may be in a pack that cannot be used: " + e.Unread.Error()
	}
	return fmt.Sprintf("no profile for %s, GUID %s, age %d%s; vmav profile fetch %s gets it, vmav profile import takes its symbol file",
		e.Identity.PDB, e.Identity.GUID, e.Identity.Age, unread, e.Identity)
}

// Unwrap returns the cause, for errors.Is and errors.As.
func (e *MissingError) Unwrap() error { return ErrNoProfile }

// Finder finds the profile of a kernel build, or fails with a *MissingError.
type Finder interface {
	// Find returns the profile of the build. The caller must not change it.
	Find(Identity) (*Profile, error)
}
