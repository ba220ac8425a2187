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
