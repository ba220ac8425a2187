package finding

import "testing"

func TestWhereAFindingIs(t *testing.T) {
	for _, tt := range []struct {
		pid               uint64
		process           string
		where, tag, owner string
	}{
		{0, "", "the kernel", "kernel", "kernel"},
		{4, "System", "process System, pid 4", "System[4]", "System"},
		{812, "a b.exe", "process a b.exe, pid 812", "a b.exe[812]", "a b.exe"},
	} {
		if got := Where(tt.pid, tt.process); got != tt.where {
			t.Errorf("Where(%d, %q) = %q, want %q", tt.pid, tt.process, got, tt.where)
		}
		if got := Tag(tt.pid, tt.process); got != tt.tag {
			t.Errorf("Tag(%d, %q) = %q, want %q", tt.pid, tt.process, got, tt.tag)
		}
		if got := Owner(tt.pid, tt.process); got != tt.owner {
			t.Errorf("Owner(%d, %q) = %q, want %q", tt.pid, tt.process, got, tt.owner)
		}
	}
}
