package introspect

import (
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/winstruct"
)

// The guest's Windows has the name that people know, which depends on the kind of product.
func TestReleaseIsTheNamePeopleKnow(t *testing.T) {
	for _, c := range []struct {
		build         string
		shared        uint64 // build number in KUSER_SHARED_DATA, 0 for the guest's own
		product       uint64
		want, version string
	}{
		{"6.1.7601", 0, 1, "Windows 7 SP1", "6.1.7601"},
		{"6.1.7601", 0, 3, "Windows Server 2008 R2 SP1", "6.1.7601"},
		{"10.0.19041", 0, 1, "Windows 10 2004", "10.0.19041"},
		{"10.0.19041", 19045, 1, "Windows 10 22H2", "10.0.19041"},
		{"10.0.22631", 0, 1, "Windows 11 23H2", "10.0.22631"},
		{"10.0.26100", 0, 1, "Windows 11 24H2", "10.0.26100"},
		{"10.0.26100", 0, 2, "Windows Server 2025", "10.0.26100"},
		{"10.0.26100", 0, 3, "Windows Server 2025", "10.0.26100"},
		{"10.0.26100", 26200, 1, "Windows 11 25H2", "10.0.26100"},
		{"10.0.26100", 26101, 9, "", "10.0.26100"},
		{"10.0.19041-x86", 0, 1, "Windows 10 2004", "10.0.19041"},
	} {
		s := lay(t, ntguest.Options{Build: c.build, Seed: 3})
		g := open(t, s)
		s.poke(t, g.as, g.as.f.kuser+0x264, c.product, 4)
		if c.shared != 0 {
			s.poke(t, g.as, g.as.f.kuser+0x260, c.shared, 4)
		}
		if k := open(t, s).Kernel(); k.Release != c.want || k.Version != c.version {
			t.Errorf("%s, %d of product %d: %q, %s; want %q", c.build, c.shared, c.product, k.Release, k.Version, c.want)
		}
	}
}

// Every build that a profile or layout is built in of has a name, but for a preview of 1903.
func TestEveryKnownBuildHasAName(t *testing.T) {
	store := winstruct.BuiltIn()
	for _, e := range append(store.List(), store.Layouts()...) {
		p, err := store.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		if b := uint32(p.BuildNumber()); b != 18326 && releaseName(b, productWorkstation) == "" && releaseName(b, productServer) == "" {
			t.Errorf("%s has no name", e.Version)
		}
	}
}
