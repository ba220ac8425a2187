package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The purpose of it all, on KVM: malware starts in a guest, and with nobody's doing it is
// seen, found and ended. The times are from the moment that the guest is told to start the
// process, by one clock, the host's. VMAV_LAB_STARTS says how many.
func TestLabWatchKillsWhatStarts(t *testing.T) {
	lab(t)
	n := 5
	if s := os.Getenv("VMAV_LAB_STARTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	s := startService(t, "--action", "kill", "--timeout", "2m")
	g := start(t, "10.0.19041")
	g.say("pause", "CHURN 0")
	s.await("sweep of the domain", 0, says(g, "swept"))
	var detection, death, whole []time.Duration
	for i := range n {
		from := s.mark()
		begin := time.Now()
		pid := g.start("malware.exe")
		k := s.await(fmt.Sprintf("kill of pid %d, start %d", pid, i), from, func(e *entry) bool { return e.Msg == "kill" && e.Domain == g.name && e.PID == pid })
		f := s.await("finding", from, findingIn(g, pid))
		if k.Outcome != "killed" || k.Dead == nil || !strings.HasPrefix(f.Outcome, "killed") || f.Trigger != "watch: new" {
			t.Errorf("start %d: %s\n%s", i, k.text, f.text)
			continue
		}
		g.expect(fmt.Sprintf("EXIT %d malware.exe 0xc0000906", pid))
		detection = append(detection, k.Requested.Sub(begin))
		death = append(death, time.Duration(*k.Dead*float64(time.Millisecond)))
		whole = append(whole, k.Requested.Sub(begin)+death[len(death)-1])
		if i%20 == 19 {
			g.say("reap", "REAPED ")
			t.Logf("%d of %d", len(whole), i+1)
		}
	}
	if c := g.complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
	// Nobody was killed twice, and nobody else.
	killed := make(map[uint64]int)
	for _, e := range s.all(0, func(e *entry) bool { return e.Msg == "kill" && e.Domain == g.name && e.Outcome == "killed" }) {
		if killed[e.PID]++; killed[e.PID] > 1 || e.Process != "malware.exe" && e.Process != "packed.exe" {
			t.Errorf("%s", e.text)
		}
	}
	if len(whole) != n {
		t.Errorf("%d of %d ended", len(whole), n)
	}
	t.Logf("start to detection: %s", distribution(detection))
	t.Logf("detection to death: %s", distribution(death))
	t.Logf("start to death:     %s", distribution(whole))
	_, st, err := s.status()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the service used %.1f s of processor time; counts %+v", st.CPU, st.Counts)
}

// The module's work outlives the service's crash: what is under way is undone, and the next
// one ends what is left.
func TestLabWatchIsKilledWhileItKills(t *testing.T) {
	lab(t)
	s := startService(t, "--action", "kill", "--timeout", "2m")
	g := start(t, "10.0.19041")
	g.say("pause", "CHURN 0")
	s.await("sweep of the domain", 0, says(g, "swept"))
	for i := range 5 {
		pid := g.start("malware.exe")
		time.Sleep(time.Duration(i*20) * time.Millisecond)
		s.kill(9)
		s.run()
		g.expect(fmt.Sprintf("EXIT %d malware.exe 0xc0000906", pid))
	}
	if c := g.complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
	g.alive()
}
