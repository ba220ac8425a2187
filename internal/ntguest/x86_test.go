package ntguest

import "testing"

// TestLay32Deterministic lays every 32-bit build out twice, and once with another seed.
func TestLay32Deterministic(t *testing.T) {
	builds, err := Builds32()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range builds {
		for _, threeGB := range []bool{false, true} {
			o := Options{Build: b.Name, Seed: 11, ThreeGB: threeGB}
			first := digest(lay(t, o))
			if second := digest(lay(t, o)); second != first {
				t.Errorf("%s: two layouts of one seed differ", b.Name)
			}
			o.Seed = 12
			if other := digest(lay(t, o)); other == first {
				t.Errorf("%s: layouts of two seeds are the same", b.Name)
			}
		}
	}
}
