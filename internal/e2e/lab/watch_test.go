package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/e2e/harness"
)

// The purpose of it all, on KVM: malware starts in a guest, and with nobody's doing it is
// seen, found and ended. The times are from the moment that the guest is told to start the
// process, by one clock, the host's. VMAV_LAB_STARTS says how many.
func TestWatchKillsWhatStarts(t *testing.T) {
	n := 5
	if s := os.Getenv("VMAV_LAB_STARTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	harness.EndShared()
	s := harness.StartService(t, "--action", "kill", "--timeout", "2m")
	g := harness.Start(t, "10.0.19041")
	g.Say("pause", "CHURN 0")
	s.Await("sweep of the domain", 0, harness.Says(g, "swept"))
	var detection, death, whole []time.Duration
	for i := range n {
		from := s.Mark()
		begin := time.Now()
		pid := g.Start("malware.exe")
		k := s.Await(fmt.Sprintf("kill of pid %d, start %d", pid, i), from,
			func(e *harness.Entry) bool { return e.Msg == "kill" && e.Domain == g.Name && e.PID == pid })
		f := s.Await("finding", from, harness.FindingIn(g, pid))
		if k.Outcome != "killed" || k.Dead == nil || !strings.HasPrefix(f.Outcome, "killed") || f.Trigger != "watch: new" {
			t.Errorf("start %d: %s\n%s", i, k.Line, f.Line)
			continue
		}
		g.Expect(fmt.Sprintf("EXIT %d malware.exe 0xc0000906", pid))
		detection = append(detection, k.Requested.Sub(begin))
		death = append(death, time.Duration(*k.Dead*float64(time.Millisecond)))
		whole = append(whole, k.Requested.Sub(begin)+death[len(death)-1])
		if i%20 == 19 {
			g.Say("reap", "REAPED ")
			t.Logf("%d of %d", len(whole), i+1)
		}
	}
	if c := g.Complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
	// Nobody was killed twice, and nobody else.
	killed := make(map[uint64]int)
	for _, e := range s.All(0, func(e *harness.Entry) bool { return e.Msg == "kill" && e.Domain == g.Name && e.Outcome == "killed" }) {
		if killed[e.PID]++; killed[e.PID] > 1 || e.Process != "malware.exe" && e.Process != "packed.exe" {
			t.Errorf("%s", e.Line)
		}
	}
	if len(whole) != n {
		t.Errorf("%d of %d ended", len(whole), n)
	}
	t.Logf("start to detection: %s", harness.Distribution(detection))
	t.Logf("detection to death: %s", harness.Distribution(death))
	t.Logf("start to death:     %s", harness.Distribution(whole))
	_, st, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the service used %.1f s of processor time; counts %+v", st.CPU, st.Counts)
}

// The module's work outlives the service's crash: what is under way is undone, and the next
// one ends what is left.
func TestWatchIsKilledWhileItKills(t *testing.T) {
	harness.EndShared()
	s := harness.StartService(t, "--action", "kill", "--timeout", "2m")
	g := harness.Start(t, "10.0.19041")
	g.Say("pause", "CHURN 0")
	s.Await("sweep of the domain", 0, harness.Says(g, "swept"))
	for i := range 5 {
		pid := g.Start("malware.exe")
		time.Sleep(time.Duration(i*20) * time.Millisecond)
		s.Kill(9)
		s.Run()
		g.Expect(fmt.Sprintf("EXIT %d malware.exe 0xc0000906", pid))
	}
	if c := g.Complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
	g.Alive()
}
