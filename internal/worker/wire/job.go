package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
)

// Job is one scan, as a worker gets it.
type Job struct {
	Name, UUID, State string // of the domain
	Info              source.Info
	Near              bool     // the broker offers profiles of near builds
	Secret            [32]byte // key that pages are digested with
	Controlled        bool     // the broker can have the guest read pages in
	Request           scan.Request
}

// Encode returns the job in the form in which it is put into a window. It fails if the job
// does not fit.
func (j *Job) Encode() ([]byte, error) {
	text, err := json.Marshal(j)
	if err == nil && len(text) > WindowSize {
		err = fmt.Errorf("it has %d bytes, and %d are possible", len(text), WindowSize)
	}
	if err != nil {
		return nil, fmt.Errorf("make a worker's job: %w", err)
	}
	return text, nil
}

// Greeting returns the arguments of AskJob: the protocol's version and that of Landlock,
// which is 0 if the kernel has none.
func Greeting(abi int) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, Protocol), byte(abi))
}

// ParseGreeting returns the version of Landlock in an AskJob. It fails if the protocol is
// another.
func ParseGreeting(q Frame) (abi int, err error) {
	if len(q.Args) != 5 || binary.LittleEndian.Uint32(q.Args) != Protocol {
		return 0, fmt.Errorf("a greeting of %d bytes in another protocol", len(q.Args))
	}
	return int(q.Args[4]), nil
}

// Result is what a worker reports at the end of a job, besides what it has reported before.
type Result struct {
	Scan finding.Scan // without findings and errors
	// Ended says why the scan ended early; "" if it did not.
	Ended string
}

// Found is a finding as a worker reports it. The worker has no say in what is decided about
// it and done.
type Found struct {
	Finding  finding.Finding
	Process  *introspect.Process // nil for the kernel
	Fidelity *pe.Fidelity        // of its content
	Scanned  int                 // number of bytes of the content that the engine saw; the rest is the mapped image
}

// Scanned is the answer to AskScan.
type Scanned struct {
	Result answer.Result
	SHA256 [32]byte // of the content that the broker received
	Known  bool     // the result was remembered, and the engine was not asked
}

// Bounds on what a worker may report in one job.
const (
	MaxFindings = 10000
	MaxReported = 64 << 20  // bytes of findings and errors, as they come
	MaxContent  = 512 << 20 // bytes of content on all lanes at a time
	maxCount    = 1 << 40
	// MaxAnswer bounds an answer that comes in several pieces, in bytes: a profile's file,
	// or the list of profiles.
	MaxAnswer = 64 << 20
)

// Check fails if the finding is one that no scan reports. It does not check text, which
// comes from a guest and is escaped where it is printed.
func (f *Found) Check() error {
	x := &f.Finding
	switch x.Kind {
	case finding.KindSignature:
	case finding.KindModified:
		if s := x.Signature; s != finding.ModifiedCode && s != finding.ModifiedHeaders && s != finding.ModifiedFile {
			return fmt.Errorf("a modification called %q", Clip(s))
		}
	default:
		return fmt.Errorf("a finding of kind %q", Clip(x.Kind))
	}
	if len(x.SHA256) != 64 {
		return fmt.Errorf("a finding with %d digits of SHA-256", len(x.SHA256))
	}
	if x.Fidelity.Form != finding.FormFile && x.Fidelity.Form != finding.FormMemory {
		return fmt.Errorf("a finding in the form %q", Clip(x.Fidelity.Form))
	}
	if k := x.Subject.Kernel; k != (f.Process == nil) || !k && x.Subject.PID != f.Process.PID {
		return fmt.Errorf("a finding in process %d of another", x.Subject.PID)
	}
	if c := x.Fidelity.Coverage; !(c >= 0 && c <= 1) {
		return fmt.Errorf("a finding with a coverage of %v", c)
	}
	return nil
}

// Check fails if the result is one that no scan has.
func (r *Result) Check() error {
	d := &r.Scan
	switch d.Status {
	case finding.StatusScanned, finding.StatusIncomplete, finding.StatusSkipped, finding.StatusFailed:
	default:
		return fmt.Errorf("the status %q", Clip(d.Status))
	}
	for _, n := range []int{d.Processes, d.Ended, d.Images, d.Unchanged, d.Files, d.Regions, d.Partial, d.PageIns} {
		if n < 0 || n > maxCount {
			return fmt.Errorf("a count of %d", n)
		}
	}
	for _, t := range []float64{d.Timing.Locate, d.Timing.Enumerate, d.Timing.Rebuild, d.Timing.Scan, d.Timing.Total} {
		if !(t >= 0 && t < 1e9) {
			return fmt.Errorf("a time of %v seconds", t)
		}
	}
	if len(d.Findings) > 0 || len(d.Errors) > 0 || len(d.Kills) > 0 || len(d.Actions) > 0 {
		return errors.New("findings, errors or actions where there is no place for them")
	}
	return nil
}

// LookedSize is the size in bytes of the report of one image that was looked at: the
// identity of the process and the key of the image, 8 bytes for each number, and one byte
// for whether all of it was seen.
const LookedSize = 7*8 + 1

// MaxLooked bounds the images that are reported in one job. A guest does not have the
// memory for more.
const MaxLooked = 1 << 18

// AppendLooked appends the report of an image.
func AppendLooked(b []byte, p introspect.Identity, m scan.ImageKey, whole bool) []byte {
	for _, n := range []uint64{p.EPROCESS, p.PID, p.CreateTime, p.DTB, m.Base, m.Size, m.Section} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	if whole {
		return append(b, 1)
	}
	return append(b, 0)
}

// ParseLooked parses a report of LookedSize bytes.
func ParseLooked(b []byte) (p introspect.Identity, m scan.ImageKey, whole bool, err error) {
	for i, n := range []*uint64{&p.EPROCESS, &p.PID, &p.CreateTime, &p.DTB, &m.Base, &m.Size, &m.Section} {
		*n = binary.LittleEndian.Uint64(b[8*i:])
	}
	if b[LookedSize-1] > 1 {
		return p, m, false, fmt.Errorf("an image that was seen %d times", b[LookedSize-1])
	}
	return p, m, b[LookedSize-1] == 1, nil
}
