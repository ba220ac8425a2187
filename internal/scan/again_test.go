package scan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// finder is an engine that knows one marker, and what it was asked.
type finder struct {
	marker []byte
	name   string // its identity

	mu    sync.Mutex
	scans int
	sees  func(data []byte) (answer.Result, error) // before the marker, where not nil
}

func (f *finder) Identity(context.Context) string { return f.name }

func (f *finder) Scan(_ context.Context, _ string, data []byte) (answer.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scans++
	if f.sees != nil {
		if res, err := f.sees(data); err != nil || res != (answer.Result{}) {
			return res, err
		}
	}
	if bytes.Contains(data, f.marker) {
		return answer.Result{Signature: "Test.Marker"}, nil
	}
	return answer.Result{}, nil
}

// edited is a guest with bytes of its memory changed.
type edited struct {
	source.Source
	mu    sync.Mutex
	pages map[uint64][]byte // by address
	reads map[uint64]int    // of pages, by address; nil to count none
}

func edit(src source.Source) *edited { return &edited{Source: src, pages: make(map[uint64][]byte)} }

func (e *edited) ReadPhys(p []byte, addr uint64) error {
	if err := e.Source.ReadPhys(p, addr); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for at := addr &^ (pe.PageSize - 1); at < addr+uint64(len(p)); at += pe.PageSize {
		if e.reads != nil && len(p) == pe.PageSize {
			e.reads[at]++
		}
		page := e.pages[at]
		if page == nil {
			continue
		}
		if at < addr {
			copy(p, page[addr-at:])
		} else {
			copy(p[at-addr:], page)
		}
	}
	return nil
}

// page is the content of a page, to be changed.
func (e *edited) page(t testing.TB, at uint64) []byte {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pages[at] == nil {
		p := make([]byte, pe.PageSize)
		if err := e.Source.ReadPhys(p, at); err != nil {
			t.Fatal(err)
		}
		e.pages[at] = p
	}
	return e.pages[at]
}

// again scans a guest and fails the test where that does not work.
func again(t testing.TB, src source.Source, e Engine, m Memory, opt options) finding.Scan {
	t.Helper()
	return againWith(t, src, Means{Profiles: winstruct.BuiltIn(), Engine: e, Memory: m}, opt)
}

func againWith(t testing.TB, src source.Source, m Means, opt options) finding.Scan {
	t.Helper()
	d, err := look(context.Background(), Target{Name: "win", Source: src}, m, opt)
	if err != nil || d.Processes == 0 {
		t.Fatalf("%v: %+v", err, d)
	}
	return d
}

// same compares what two scans tell of a guest, whatever it cost to find out.
func same(t testing.TB, what string, got, want finding.Scan) {
	t.Helper()
	for _, d := range []*finding.Scan{&got, &want} {
		d.Timing, d.Files, d.Bytes, d.Unchanged = finding.Timing{}, 0, 0, 0
		slices.SortFunc(d.Errors, func(a, b finding.Unread) int { return bytes.Compare([]byte(a.What+a.Error), []byte(b.What+b.Error)) })
		slices.SortFunc(d.Findings, func(a, b finding.Finding) int {
			key := func(f finding.Finding) []byte {
				return []byte(fmt.Sprintf("%08d %016x %s %s", f.PID, uint64(f.Base), f.Signature, f.SHA256))
			}
			return bytes.Compare(key(a), key(b))
		})
	}
	if len(got.Findings) != len(want.Findings) || len(got.Errors) != len(want.Errors) {
		t.Errorf("%s: %d findings and %d errors, want %d and %d", what, len(got.Findings), len(got.Errors), len(want.Findings), len(want.Errors))
		return
	}
	for i := range got.Findings {
		if !reflect.DeepEqual(got.Findings[i], want.Findings[i]) {
			t.Errorf("%s: finding\n%+v, want\n%+v", what, got.Findings[i], want.Findings[i])
		}
	}
	got.Findings, want.Findings = nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n%+v, want\n%+v", what, got, want)
	}
}

// kept is a store for tests: a map.
type kept struct {
	mu     sync.Mutex
	values map[[32]byte][]byte
	secret [32]byte
}

func newKept() *kept { return &kept{values: make(map[[32]byte][]byte), secret: [32]byte{1, 2, 3}} }

func (k *kept) Secret() [32]byte { return k.secret }

func (k *kept) Flush() {}

func (k *kept) Get(key [32]byte) ([]byte, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, ok := k.values[key]
	return v, ok
}

func (k *kept) Put(key [32]byte, v []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.values[key] = slices.Clone(v)
}

var againGuests = []ntguest.Options{
	{Build: "10.0.19041", Seed: 5},
	{Build: "6.1.7601", Seed: 6, FileCache: true, Implants: true},
	{Build: "10.0.22000", Seed: 7, FileCache: true, Implants: true, Trim: 30},
	{Build: "10.0.19041", Seed: 8, Trim: 60},
}

// TestASecondScanSaysTheSame scans guests again, in the same process, in another one
// and with all forgotten: the second tells the same as the first and scans nothing.
func TestASecondScanSaysTheSame(t *testing.T) {
	for _, opts := range append(againGuests, ntguest.Options{Build: "10.0.19041-x86", Seed: 9}, ntguest.Options{Build: "6.1.7601-x86-pae", Seed: 10}) {
		what := fmt.Sprintf("%s, trim %d", opts.Build, opts.Trim)
		m, err := ntguest.Lay(opts)
		if err != nil {
			t.Fatal(err)
		}
		src := imageOf(t, m)
		again := func(t testing.TB, src source.Source, e Engine, memory Memory, opt options) finding.Scan {
			return againWith(t, src, Means{Profiles: winstructtest.With{Store: winstruct.BuiltIn(), Profile: m.Profile()}, Engine: e, Memory: memory}, opt)
		}
		e := &finder{marker: []byte(marker), name: "a"}
		opt := options{MinCoverage: DefaultMinCoverage}
		store := newKept()
		cache := NewLastingCache(store, "program")
		first := again(t, src, e, cache, opt)
		if first.Files == 0 || len(first.Findings) == 0 || opts.Trim > 0 && len(first.Errors) == 0 {
			t.Errorf("%s: first scan %+v", what, first)
		}
		scans := e.scans
		for how, memory := range map[string]*Cache{"again": cache, "another process": NewLastingCache(store, "program")} {
			d := again(t, src, e, memory, opt)
			same(t, what+", "+how, d, first)
			if e.scans != scans || d.Files != 0 {
				t.Errorf("%s, %s: %d scans more, %d files", what, how, e.scans-scans, d.Files)
			}
			if findings := len(d.Findings); d.Unchanged < d.Images-findings-d.Images/10 {
				t.Errorf("%s, %s: %d of %d images recognised, %d findings", what, how, d.Unchanged, d.Images, findings)
			}
		}
		d := again(t, src, e, NewLastingCache(store, "another program"), opt)
		same(t, what+", another program", d, first)
		if e.scans != scans {
			t.Errorf("%s, another program: %d scans more", what, e.scans-scans)
		}
		// With other signatures nothing is known.
		before := e.scans
		e.name = "b"
		d = again(t, src, e, cache, opt)
		same(t, what+", other signatures", d, first)
		if e.scans-before != scans {
			t.Errorf("%s, other signatures: %d scans, the first scan had %d", what, e.scans-before, scans)
		}
		// An engine that does not know what it has loaded is asked of everything anew.
		e.name = ""
		for range 2 {
			before = e.scans
			if again(t, src, e, cache, opt); e.scans-before != scans {
				t.Errorf("%s, unknown signatures: %d scans, the first scan had %d", what, e.scans-before, scans)
			}
		}
	}
}

// TestWhatWasNotScannedIsScannedNextTime has an engine fail and give up on contents.
func TestWhatWasNotScannedIsScannedNextTime(t *testing.T) {
	src, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5, Implants: true})
	e := &finder{marker: []byte(marker), name: "a"}
	opt := options{MinCoverage: DefaultMinCoverage}
	clean := again(t, src, e, NewCache(), opt)
	scans := e.scans
	for name, bad := range map[string]func(n int) (answer.Result, error){
		"skipped": func(n int) (answer.Result, error) {
			if n%3 == 0 {
				return answer.Result{Skipped: "a limit"}, nil
			}
			return answer.Result{}, nil
		},
		"failed": func(n int) (answer.Result, error) {
			if n%3 == 0 {
				return answer.Result{}, errors.New("odd reply")
			}
			return answer.Result{}, nil
		},
	} {
		store := newKept()
		n := 0
		e := &finder{marker: []byte(marker), name: "a", sees: func([]byte) (answer.Result, error) { n++; return bad(n) }}
		got := again(t, src, e, NewLastingCache(store, ""), opt)
		if got.Status != finding.StatusIncomplete || len(got.Errors) < 10 {
			t.Errorf("%s: %s, %d errors", name, got.Status, len(got.Errors))
		}
		good := &finder{marker: []byte(marker), name: "a"}
		got = again(t, src, good, NewLastingCache(store, ""), opt)
		same(t, name+", then scanned", got, clean)
		if good.scans == 0 || good.scans >= scans {
			t.Errorf("%s: the next scan scans %d contents of %d", name, good.scans, scans)
		}
	}
}

// TestAPageIsReadOnce counts what a second scan reads: the pages of a section once,
// however many processes map it.
func TestAPageIsReadOnce(t *testing.T) {
	src, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5, FileCache: true})
	e := &finder{marker: []byte("nowhere"), name: "a"}
	cache := NewCache()
	opt := options{MinCoverage: DefaultMinCoverage}
	again(t, src, e, cache, opt)
	all := pagesOf(t, src)
	counted := edit(src)
	counted.reads = make(map[uint64]int)
	d := again(t, counted, e, cache, opt)
	if d.Unchanged != d.Images {
		t.Errorf("%d of %d images recognised", d.Unchanged, d.Images)
	}
	once, more := 0, 0
	for _, kind := range []string{"section", "cached file"} {
		for _, at := range all[kind] {
			switch n := counted.reads[at]; {
			case n == 1:
				once++
			case n > 2: // the first page of an image is looked at for its base, too
				more++
				t.Errorf("page %#x of a %s was read %d times", at, kind, n)
			}
		}
	}
	if once < 1000 {
		t.Errorf("%d pages were read once, %d more than twice", once, more)
	}
}

// TestAScopeHasRecordsOfItsOwn keeps what scans of one guest say of images from others.
func TestAScopeHasRecordsOfItsOwn(t *testing.T) {
	ctx := context.Background()
	c := NewLastingCache(newKept(), "program")
	e := &finder{name: "a"}
	a, b, all := c.Scope("a").For(ctx, e), c.Scope("b").For(ctx, e), c.For(ctx, e)
	if a.Secret() == b.Secret() || a.Secret() == all.Secret() {
		t.Error("two scopes have the same secret")
	}
	a.Remember([32]byte{1}, []byte("record"))
	if got, ok := c.Scope("a").For(ctx, e).Recall([32]byte{1}); !ok || string(got) != "record" {
		t.Errorf("%q, %v", got, ok)
	}
	for _, s := range []Results{b, all} {
		if got, ok := s.Recall([32]byte{1}); ok {
			t.Errorf("a record of another scope: %q", got)
		}
	}
	if _, fresh, err := a.Result(ctx, [32]byte{2}, func() (answer.Result, error) { return answer.Result{}, nil }); !fresh || err != nil {
		t.Error(fresh, err)
	}
	if !b.Clean([32]byte{2}) || b.Clean([32]byte{3}) {
		t.Error("what the engine said is not shared")
	}
}

// TestWhatIsKnownHasItsContentWhereItIsAskedFor scans a guest with changed code again: it is
// rebuilt where findings are to come with what they were found in.
func TestWhatIsKnownHasItsContentWhereItIsAskedFor(t *testing.T) {
	src, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3, Implants: true})
	e := &finder{marker: []byte(marker), name: "a"}
	cache := NewCache()
	opt := options{MinCoverage: DefaultMinCoverage}
	first := again(t, src, e, cache, opt)
	modified := 0
	for _, f := range first.Findings {
		if f.Kind == finding.KindModified {
			modified++
		}
	}
	for _, asked := range []bool{false, true} {
		without, with := 0, 0
		again(t, src, e, cache, options{MinCoverage: DefaultMinCoverage, Content: asked, Found: func(f Found) {
			if f.Finding.Kind == finding.KindModified && f.Content.Scanned == nil {
				without++
			} else if f.Finding.Kind == finding.KindModified && f.Content.Memory != nil {
				with++
			}
		}})
		if asked && (without > 0 || with != modified) || !asked && without != modified || modified < 2 {
			t.Errorf("asked for: %v; of %d findings %d have their content, %d have none", asked, modified, with, without)
		}
	}
}
