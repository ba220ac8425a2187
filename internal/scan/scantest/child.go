package scantest

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// KillChild kills the only child process that this process has. The test fails if there is
// none or more than one.
func KillChild(t testing.TB) {
	t.Helper()
	self := strconv.Itoa(os.Getpid())
	dirs, err := os.ReadDir("/proc")
	n := 0
	for _, d := range dirs {
		pid, perr := strconv.Atoi(d.Name())
		if perr != nil {
			continue
		}
		stat, perr := os.ReadFile("/proc/" + d.Name() + "/stat")
		if perr != nil {
			continue
		}
		if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(f) > 1 && f[1] == self {
			n++
			err = unix.Kill(pid, unix.SIGKILL)
		}
	}
	if n != 1 || err != nil {
		t.Errorf("killed %d workers, %v", n, err)
	}
}
