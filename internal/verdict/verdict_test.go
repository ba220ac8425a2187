package verdict

import (
	"strings"
	"testing"
	"testing/quick"
)

func TestDecide(t *testing.T) {
	kill := Policy{Action: Kill}
	user := Subject{PID: 812, Name: "malware.exe"}
	with := func(f func(*Subject)) Subject { s := user; f(&s); return s }
	for _, tt := range []struct {
		name string
		p    Policy
		s    Subject
		want Action
		why  string
	}{
		{"default", Policy{}, user, Report, "policy"},
		{"asked for", kill, user, Kill, "policy"},
		{"hidden", kill, with(func(s *Subject) { s.Hidden = true }), Kill, "policy"},
		{"critical", kill, with(func(s *Subject) { s.Critical = true }), Report, "critical"},
		{"System", kill, with(func(s *Subject) { s.PID = 4 }), Report, "System"},
		{"name of a system process", kill, with(func(s *Subject) { s.Name = "LSASS.exe" }), Report, "system process"},
		{"exited", kill, with(func(s *Subject) { s.Exited = true }), Report, "exited"},
		{"driver", kill, with(func(s *Subject) { s.Kernel = true }), Report, "driver"},
		{"inferred", kill, with(func(s *Subject) { s.Inferred = true }), Report, "inferred"},
		{"no pid", kill, with(func(s *Subject) { s.PID = 813 }), Report, "no process id"},
	} {
		if got := Decide(tt.p, tt.s); got.Action != tt.want || !strings.Contains(got.Reason, tt.why) {
			t.Errorf("%s: %+v, want %s because of %q", tt.name, got, tt.want, tt.why)
		}
	}
}

// Whatever the input, a guarded process is never killed.
func TestGuardsHold(t *testing.T) {
	f := func(action bool, s Subject) bool {
		p := Policy{Action: Report}
		if action {
			p.Action = Kill
		}
		guarded := s.Kernel || s.PID == 0 || s.PID == 4 || s.Critical || s.Exited || s.Inferred || system[strings.ToLower(s.Name)]
		return !(guarded && Decide(p, s).Action == Kill)
	}
	if err := quick.Check(f, &quick.Config{MaxCount: 20000}); err != nil {
		t.Error(err)
	}
}

func TestSurrogatesAreThePolicysAndSystemServices(t *testing.T) {
	policy := Policy{Surrogates: DefaultSurrogates()}
	service := Candidate{Subject: Subject{PID: 900, Name: "svchost.exe", Path: `\Device\HarddiskVolume2\WINDOWS\system32\svchost.exe`},
		Account: "S-1-5-18", HasUserMode: true}
	with := func(f func(*Candidate)) Candidate { c := service; f(&c); return c }
	for _, tt := range []struct {
		name string
		p    Policy
		c    Candidate
		why  string
	}{
		{"a service", policy, service, ""},
		{"no policy", Policy{}, service, "policy"},
		{"elsewhere", policy, with(func(c *Candidate) { c.Path = `\Device\HarddiskVolume2\Temp\svchost.exe` }), "policy"},
		{"on no volume", policy, with(func(c *Candidate) { c.Path = `\Windows\System32\svchost.exe` }), "policy"},
		{"on a share", policy, with(func(c *Candidate) { c.Path = `\Device\Mup\Windows\System32\svchost.exe` }), "policy"},
		{"below a volume's name", policy, with(func(c *Candidate) { c.Path = `\Device\HarddiskVolume2x\Windows\System32\svchost.exe` }), "policy"},
		{"of the network service", policy, with(func(c *Candidate) { c.Account = "S-1-5-20" }), "S-1-5-20"},
		{"of no known account", policy, with(func(c *Candidate) { c.Account = "" }), "not known"},
		{"in a user's session", policy, with(func(c *Candidate) { c.Session = 1 }), "session 1"},
		{"32-bit", policy, with(func(c *Candidate) { c.Wow64 = true }), "32-bit"},
		{"protected", policy, with(func(c *Candidate) { c.Protected = true }), "protected"},
		{"hidden", policy, with(func(c *Candidate) { c.Hidden = true }), "hidden"},
		{"critical", policy, with(func(c *Candidate) { c.Critical = true }), "critical"},
		{"finished", policy, with(func(c *Candidate) { c.Exited = true }), "exited"},
		{"without user mode", policy, with(func(c *Candidate) { c.HasUserMode = false }), "user mode"},
	} {
		if why := tt.p.Surrogate(tt.c); (why == "") != (tt.why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %q, want %q", tt.name, why, tt.why)
		}
	}
}
