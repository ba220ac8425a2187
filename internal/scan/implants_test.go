package scan

import (
	"context"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
)

// implantEngine knows the markers of implants and the test guest's malware.
func implantEngine(t *testing.T) *clam.Engine {
	t.Helper()
	var text strings.Builder
	for name, body := range map[string]string{"Vmav.Test.Malware": marker, "Vmav.Test.Implant": ntguest.ImplantMarker,
		"Vmav.Test.Unpacked": ntguest.UnpackedMarker} {
		text.WriteString(name + ":0:*:" + hex.EncodeToString([]byte(body)) + "\n")
	}
	return engineFor(t, text.String())
}

// TestImplantsAreFound scans a guest with what malware leaves in processes: hooked
// code, wiped headers, code and a whole program in private memory, code that a packed
// program has unpacked. Each is one finding that says where it is; nothing else is.
func TestImplantsAreFound(t *testing.T) {
	e := implantEngine(t)
	want := map[string]struct{ kind, signature, form, region string }{
		ntguest.ImplantHook:    {finding.KindModified, finding.ModifiedCode, finding.FormFile, finding.RegionImage},
		ntguest.ImplantHeaders: {finding.KindModified, finding.ModifiedHeaders, finding.FormFile, finding.RegionImage},
		ntguest.ImplantRegion:  {finding.KindSignature, "Vmav.Test.Implant", finding.FormMemory, finding.RegionPrivate},
		ntguest.ImplantImage:   {finding.KindSignature, "Vmav.Test.Malware", finding.FormMemory, finding.RegionPrivate},
		ntguest.ImplantUnpack:  {finding.KindSignature, "Vmav.Test.Unpacked", finding.FormMemory, finding.RegionImage},
	}
	for i, build := range []string{"6.1.7601", "10.0.19041", "10.0.22000"} {
		m, err := ntguest.Lay(ntguest.Options{Build: build, Seed: uint64(i) + 3, Implants: true})
		if err != nil {
			t.Fatal(err)
		}
		got, err := look(context.Background(), Target{Name: "win", State: "image", Source: imageOf(t, m)}, builtIn(e, NewCache()),
			options{MinCoverage: DefaultMinCoverage})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range got.Errors {
			t.Errorf("%s: %s: %s", build, e.What, e.Error)
		}
		if got.Regions < 3 {
			t.Errorf("%s: %d regions", build, got.Regions)
		}
		for _, im := range m.Implants() {
			w := want[im.Kind]
			j := slices.IndexFunc(got.Findings, func(f finding.Finding) bool {
				return f.PID == im.PID && f.Kind == w.kind && f.Signature == w.signature && f.Region != nil && uint64(f.Region.Start) <= im.Start &&
					uint64(f.Region.End) > im.Start
			})
			if j < 0 {
				t.Errorf("%s: %s in pid %d was not found", build, im.Kind, im.PID)
				continue
			}
			f := got.Findings[j]
			if f.Fidelity.Form != w.form || f.Region.Type != w.region {
				t.Errorf("%s: %s at %#x-%#x: found %+v, region %+v", build, im.Kind, im.Start, im.End, f, f.Region)
			}
			got.Findings = slices.Delete(got.Findings, j, j+1)
		}
		// The malware that runs from its own file is the one finding that is no implant.
		if len(got.Findings) != 1 || got.Findings[0].Process != "malware.exe" || got.Findings[0].Hashes == nil || len(got.Findings[0].Hashes.Sections) == 0 {
			t.Errorf("%s: findings besides the implants: %+v", build, got.Findings)
		}
	}
}
