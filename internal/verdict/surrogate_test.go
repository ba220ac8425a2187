package verdict

import (
	"strings"
	"testing"
)

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
