package harness

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The guests that tests of a package share, by build and options.
var shared = make(map[string]*Guest)

// ends are what shared guests need done at the end of the package's tests.
var ends []func()

// forAll is the test that a shared guest is booted for, whose end is not that guest's.
type forAll struct{ testing.TB }

func (forAll) Cleanup(f func()) { ends = append(ends, f) }

// EndShared ends the shared guests: at the end of a package's tests, and before a test of the
// service, which watches all domains that there are.
func EndShared() {
	for len(ends) > 0 {
		end := ends[len(ends)-1]
		ends = ends[:len(ends)-1]
		end()
	}
	clear(shared)
}

// Shared is a test guest that the tests of a package use one after another: in the lab a boot
// takes as long as most of them. The test has it as it was booted, but for programs that
// have ended: it must kill none that another test needs, and must not end the domain. After a
// test that fails the next one gets a new guest. Between the tests it is frozen, so that it
// takes no processor from other guests.
func Shared(t testing.TB, build string, more ...string) *Guest {
	t.Helper()
	key := strings.Join(append([]string{build}, more...), " ")
	g := shared[key]
	if g == nil || !g.answers("thaw", "FROZEN 0") || !g.answers("resume", "CHURN 1") {
		if g != nil {
			t.Logf("the guest that was used before does not answer, and is replaced")
			VirshQuiet(t, "destroy", g.Name)
		}
		g = Start(forAll{t}, build, more...)
		shared[key] = g
	}
	g.T, g.said, g.started = t, nil, nil
	t.Cleanup(func() {
		for _, pid := range g.started {
			fmt.Fprintf(g.conn, "kill %d 0\n", pid) // most have ended, and the guest says so
		}
		if t.Failed() || !g.answers("reap", "REAPED ") || !g.answers("freeze", "FROZEN 1") {
			VirshQuiet(t, "destroy", g.Name)
			delete(shared, key)
		}
	})
	return g
}

// answers tells the guest a command, and says whether it answers it in minutes.
func (g *Guest) answers(command, answer string) bool {
	if _, err := fmt.Fprintln(g.conn, command); err != nil {
		return false
	}
	for late := time.After(3 * time.Minute); ; {
		select {
		case line, ok := <-g.in:
			if strings.HasPrefix(line, answer) || !ok {
				return ok
			}
		case <-late:
			return false
		}
	}
}
