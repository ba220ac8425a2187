package harness

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmav.dev/vmav/internal/domain/domaintest"
)

// chaos is what happens to a host while a service watches it.
type chaos struct {
	t      *testing.T
	rng    *rand.Rand
	d      *domaintest.Daemon
	s      *Service
	guests []*Guest
	owed   map[*Guest][]uint64 // malware that must be found, while its guest lives
	files  string              // of saved domains
	done   map[string]int      // how often each thing was done
	kills  bool                // the module is there
}

// Chaos kills libvirtd, clamd, QEMU, the service and its workers at random, starts,
// stops, pauses, saves and restores domains, and starts malware in them: what a living guest
// runs is found, nobody is killed twice, no guest is harmed, and the service holds no more
// at the end than in the beginning. VMAV_CHAOS says for how long, VMAV_CHAOS_SEED how.
func Chaos(t *testing.T) {
	d := domaintest.Own(t)
	if d == nil {
		return
	}
	length, err := time.ParseDuration(os.Getenv("VMAV_CHAOS"))
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("VMAV_CHAOS_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("VMAV_CHAOS_SEED=%d", seed)
	c := &chaos{t: t, rng: rand.New(rand.NewPCG(seed, 0)), d: d, owed: make(map[*Guest][]uint64), files: OpenDir(t), done: make(map[string]int), kills: InLab()}
	var args []string
	if c.kills {
		args = []string{"--action", "kill", "--timeout", "2m"}
	}
	c.s = StartService(t, args...)
	if _, errs, status := c.s.Vmav("hook", "install", "--hooks-directory", d.Hooks()); status != 0 {
		t.Fatalf("hook install: %d, %q", status, errs)
	}
	d.Kill()
	d.Start()
	for range 2 {
		c.boot()
	}
	// The service dies in the first half; in the second one it must not grow.
	half := time.Now().Add(length / 2)
	for time.Now().Before(half) {
		c.step(true)
	}
	c.settle()
	files, resident := c.s.holds()
	for end := time.Now().Add(length / 2); time.Now().Before(end); {
		c.step(false)
	}
	c.settle()
	filesNow, residentNow := c.s.holds()
	t.Logf("done: %v", c.done)
	t.Logf("the service held %d files and %d MiB, and holds %d and %d MiB", len(files), resident>>20, len(filesNow), residentNow>>20)
	if len(filesNow) > len(files)+4 { // a libvirt connection or a session of clamd more or less
		t.Errorf("open files were\n%s\nand are\n%s", strings.Join(files, "\n"), strings.Join(filesNow, "\n"))
	}
	if residentNow > resident+resident/2+64<<20 {
		t.Errorf("%d MiB of memory became %d", resident>>20, residentNow>>20)
	}
	c.nobodyTwice()
	c.recorded()
	for _, g := range c.guests {
		g.Alive()
	}
}

// boot starts a domain.
func (c *chaos) boot() *Guest {
	g := Start(c.t, []string{"10.0.19041", "6.1.7601", "10.0.22000"}[c.rng.IntN(3)])
	c.guests = append(c.guests, g)
	return g
}

func (c *chaos) any() *Guest { return c.guests[c.rng.IntN(len(c.guests))] }

// gone forgets a guest that has ended. What it ran cannot be found any more.
func (c *chaos) gone(g *Guest) {
	for i := range c.guests {
		if c.guests[i] == g {
			c.guests = append(c.guests[:i], c.guests[i+1:]...)
			break
		}
	}
	delete(c.owed, g)
	if len(c.guests) == 0 {
		c.boot()
	}
}

// infect starts malware in a guest.
func (c *chaos) infect(g *Guest) {
	c.owed[g] = append(c.owed[g], g.Start("malware.exe"))
}

// step does one thing.
func (c *chaos) step(service bool) {
	c.t.Helper()
	did := func(what string) { c.done[what]++ }
	g := c.any()
	switch n := c.rng.IntN(20); {
	case n < 6:
		c.infect(g)
		did("malware")
	case n < 8:
		did("libvirtd killed")
		c.d.Kill()
		c.infect(c.any())
		if len(c.guests) > 1 && c.rng.IntN(2) == 0 { // a QEMU ends while nobody looks
			c.killQEMU(c.any())
			did("QEMU killed without libvirtd")
		}
		c.d.Start()
	case n < 10:
		did("clamd killed")
		_ = syscall.Kill(c.s.Clamd(), syscall.SIGKILL)
	case n < 11:
		did("QEMU killed")
		c.killQEMU(g)
	case n < 12 && service:
		did("service killed")
		c.s.Kill(syscall.SIGKILL)
		c.infect(c.any())
		c.s.Run()
	case n < 14:
		did("paused")
		Virsh(c.t, "suspend", g.Name)
		time.Sleep(time.Duration(c.rng.IntN(500)) * time.Millisecond)
		Virsh(c.t, "resume", g.Name)
	case n < 15:
		did("saved and restored")
		file := filepath.Join(c.files, g.Name)
		Virsh(c.t, "save", g.Name, file)
		Virsh(c.t, "restore", file)
		_ = os.Remove(file)
		g.connect()
		g.Expect("HB ")
	case n < 16:
		did("destroyed")
		g.destroy()
		c.gone(g)
	case n < 18 && len(c.guests) < 3:
		did("started")
		c.boot()
	case n < 19:
		if c.killWorker() {
			did("worker killed")
		}
	default:
		time.Sleep(time.Duration(c.rng.IntN(300)) * time.Millisecond)
	}
}

// killWorker kills a process in which the service reads a guest, as soon as there is one.
func (c *chaos) killWorker() bool {
	for range 200 {
		if all := c.s.Workers(); len(all) > 0 {
			return syscall.Kill(all[c.rng.IntN(len(all))], syscall.SIGKILL) == nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

func (c *chaos) killQEMU(g *Guest) {
	if err := syscall.Kill(PidOf("qemu-system", "guest="+g.Name), syscall.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
	c.gone(g)
}

// settle waits until the service has found all that it owes, and watches what there is: two
// domains, so that what it holds can be compared.
func (c *chaos) settle() {
	c.t.Helper()
	for len(c.guests) < 2 {
		c.boot()
	}
	for len(c.guests) > 2 {
		g := c.guests[0]
		g.destroy()
		c.gone(g)
	}
	for _, g := range c.guests {
		for _, pid := range c.owed[g] {
			c.s.Await(fmt.Sprintf("finding of pid %d in %s", pid, g.Name), 0, FindingIn(g, pid))
		}
		c.infect(g)
		pid := c.owed[g][len(c.owed[g])-1]
		c.s.Await("finding of what starts now", 0, FindingIn(g, pid))
		// Where programs come and go there is always one to be looked at.
		g.Say("pause", "CHURN 0")
	}
	last := ""
	defer func() { // where it does not come to rest
		if c.t.Failed() {
			c.t.Logf("its status was %s", last)
		}
	}()
	WaitFor(c.t, "the service to come to rest", func() bool {
		text, st, err := c.s.Status()
		last = text
		if err != nil || len(st.Domains) != 2 || st.EngineErr != "" {
			return false
		}
		for _, d := range st.Domains {
			if d.State != "watched" || d.Sweeping || d.Status == "" || d.Due > 0 {
				return false
			}
		}
		return true
	})
	for _, g := range c.guests {
		g.Say("resume", "CHURN 1")
	}
}

// recorded checks that the history has every finding that was reported, and that its chain
// holds.
func (c *chaos) recorded() {
	out, errs, _ := c.s.Vmav("history", "--format", "json")
	var all []struct {
		Domain, Signature string
		PID               uint64
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		c.t.Fatalf("history: %v\n%s", err, errs)
	}
	have := make(map[string]bool)
	for _, f := range all {
		have[fmt.Sprint(f.Domain, f.PID, f.Signature)] = true
	}
	reported := c.s.All(0, func(e *Entry) bool { return e.Msg == "finding" })
	for _, e := range reported {
		if !have[fmt.Sprint(e.Domain, e.PID, e.Signature)] {
			c.t.Errorf("reported, and not in the history: %s", e.Line)
		}
	}
	c.t.Logf("%d findings reported, %d in the history", len(reported), len(all))
	if out, errs, status := c.s.Vmav("history", "verify"); status != 0 {
		c.t.Errorf("history verify: status %d, %s %s", status, out, errs)
	}
}

// nobodyTwice checks the kills: each process ended once, by the service's word, and no
// innocent did.
func (c *chaos) nobodyTwice() {
	seen := make(map[string]bool)
	for _, e := range c.s.All(0, func(e *Entry) bool { return e.Msg == "kill" && e.Outcome == "killed" }) {
		key := fmt.Sprintf("%s %d", e.Domain, e.PID)
		if seen[key] || e.Process != "malware.exe" && e.Process != "packed.exe" {
			c.t.Errorf("killed twice, or an innocent: %s", e.Line)
		}
		seen[key] = true
	}
	if c.kills && len(seen) == 0 {
		c.t.Error("nobody was killed at all")
	}
	c.t.Logf("%d processes killed", len(seen))
	for _, g := range c.guests {
		if said := g.Complaints(); len(said) > 0 {
			c.t.Errorf("%s complains: %q", g.Name, said)
		}
	}
	for _, line := range c.s.other {
		if strings.Contains(line, "panic") || strings.Contains(line, "fatal error") {
			c.t.Errorf("the service said %q", line)
		}
	}
}
