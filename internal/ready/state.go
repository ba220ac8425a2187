package ready

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// least is the free space, in bytes, that a ready host has.
const least = 256 << 20

// Directory looks at a directory that vmav writes to. If want is not 0, it also checks
// for so many bytes of free space. A directory that does not exist is made when it is
// needed, so then its parent must be writable.
func (h *Inspector) Directory(what, dir string, want uint64) Answer {
	a := Answer{What: what}
	at := h.path(dir)
	for {
		_, err := os.Stat(at)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			a.Detail = err.Error()
			a.Fix = h.asRoot("ls -ld " + dir)
			return a
		}
		at = filepath.Dir(at)
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
		a.Detail = fmt.Sprintf("%s cannot be written to: %v", dir, err)
		a.Fix = h.asRoot("install -d -o " + userName() + " " + dir)
		if h.uid != 0 {
			a.Fix = "sudo vmav check"
		}
		if errors.Is(err, unix.EROFS) {
			a.Fix = h.asRoot("mount -o remount,rw $(stat -c %m " + dir + ")")
		}
		return a
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		a.Detail, a.Fix = fmt.Sprintf("look at the space in %s: %v", dir, err), h.asRoot("df "+dir)
		return a
	}
	free := st.Bavail * uint64(st.Bsize)
	a.Detail = fmt.Sprintf("%s, %d MiB free", dir, free>>20)
	if want == 0 {
		a.OK, a.Detail = true, dir
		return a
	}
	if free < least {
		a.Detail += fmt.Sprintf(", less than %d MiB", least>>20)
		a.Fix = h.asRoot("vmav history prune && vmav evidence prune")
		return a
	}
	a.OK = true
	if free < want {
		a.Detail += fmt.Sprintf(" of the %d MiB that may be kept", want>>20)
	}
	return a
}
