package pe_test

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// paritySig is a signature made from an original file.
type paritySig struct {
	kind     pe.SignatureKind
	file     int
	name     string
	off, n   uint64 // the bytes of the file it looks at, for those that look at a run
	section  int    // for section hashes
	db, line string // database and entry
}

// parityCase is one original and what was rebuilt of it.
type parityCase struct {
	path     string
	original []byte
	f        *pe.Fidelity
	h        *pe.Headers
	unpacked bool // the engine looks into what is packed in it
}

// TestSignatureParity makes signatures of every kind from original files, scans
// originals and rebuilt files with clamscan, and demands that a signature hits
// the rebuilt file exactly where the fidelity record says that it can.
func TestSignatureParity(t *testing.T) {
	if testing.Short() {
		t.Skip("takes most of a minute; make test does it")
	}
	if _, err := exec.LookPath("clamscan"); err != nil {
		t.Fatalf("%v (Debian package clamav)", err)
	}
	for _, c := range []struct {
		name    string
		percent int
		share   float64 // of the signatures, at least, that must be predicted to hit
	}{{"all pages", 0, 0.85}, {"a quarter trimmed", 25, 0.40}} {
		t.Run(c.name, func(t *testing.T) { signatureParity(t, c.percent, c.share) })
	}
}

func signatureParity(t *testing.T, percent int, share float64) {
	rnd := rand.New(rand.NewSource(6))
	l := &petest.Loader{Rand: rnd, ResolveDelay: true}
	dir := t.TempDir()
	for _, d := range []string{"db", "original", "rebuilt"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var cases []parityCase
	n := 0
	sample(t, 1, l, func(path string, file []byte, m *petest.Mapped) {
		// Few of the many that are alike, all that are not.
		if n++; len(file) > 2<<20 || strings.HasPrefix(path, wineDir) && n%40 != 0 {
			return
		}
		img := imageOf(path, m)
		if percent > 0 {
			trim(img, rnd, percent)
		}
		f, err := pe.Rebuild(img, pe.Options{ResolveExport: resolver(l), PreferredBase: originalBase(file)})
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		name := fmt.Sprintf("%03d", len(cases))
		writeFile(t, filepath.Join(dir, "original", name), file)
		writeFile(t, filepath.Join(dir, "rebuilt", name), f.Data)
		cases = append(cases, parityCase{path, file, f.Fidelity, f.Headers, strings.HasPrefix(filepath.Base(path), "clam-")})
	})
	sigs := makeSignatures(t, rnd, cases, importHashes(t, dir, cases))
	dbs := map[string]*bytes.Buffer{}
	for _, s := range sigs {
		if s.db == "cbc" { // a program has a file of its own
			writeFile(t, filepath.Join(dir, "db", s.name+".cbc"), []byte(s.line))
			continue
		}
		if dbs[s.db] == nil {
			dbs[s.db] = new(bytes.Buffer)
		}
		fmt.Fprintln(dbs[s.db], s.line)
	}
	for ext, b := range dbs {
		writeFile(t, filepath.Join(dir, "db", "parity."+ext), b.Bytes())
	}
	onOriginal := clamHits(t, dir, "original")
	onRebuilt := clamHits(t, dir, "rebuilt")
	luck := 0
	rows := map[parityRow]*parityCounts{}
	for _, s := range sigs {
		file := fmt.Sprintf("%03d", s.file)
		row := rows[parityRow{s.db, s.kind}]
		if row == nil {
			row = new(parityCounts)
			rows[parityRow{s.db, s.kind}] = row
		}
		row.made++
		if !onOriginal[file+" "+s.name] {
			t.Logf("%s (%s, %s) does not hit its original %s", s.name, s.db, s.kind, cases[s.file].path)
			continue
		}
		row.original++
		got := onRebuilt[file+" "+s.name]
		if got {
			row.rebuilt++
		}
		switch predict(&cases[s.file], &s) {
		case pe.SupportYes:
			row.predicted++
			if !got {
				t.Errorf("%s (%s) was predicted to hit %s and does not: %s", s.name, s.kind, cases[s.file].path, s.line)
			}
		case pe.SupportNo:
			// Bytes that are missing may have been zeros.
			if got {
				luck++
			}
		}
	}
	var all, yes int
	for _, db := range []string{"hdb", "hsb", "mdb", "msb", "imp", "ndb", "ldb", "yara", "cbc"} {
		for _, k := range parityKinds {
			row := rows[parityRow{db, k}]
			if row == nil {
				continue
			}
			t.Logf("%-4s %-13s %4d signatures, %4d hit the original, %4d predicted to hit the rebuilt file, %4d hit it",
				db, k, row.made, row.original, row.predicted, row.rebuilt)
			if row.original*20 < row.made*19 {
				t.Errorf("%s %s: %d of %d signatures do not hit their original", db, k, row.made-row.original, row.made)
			}
			if k != pe.SigFileHash && k != pe.SigEndOfFile {
				all, yes = all+row.made, yes+row.predicted
			}
		}
	}
	t.Logf("%d hit against the prediction", luck)
	if luck*50 > all {
		t.Errorf("%d of %d hit that were predicted not to", luck, all)
	}
	if len(rows) < 18 || float64(yes) < share*float64(all) {
		t.Errorf("%d kinds of signatures; %d of %d predicted to hit", len(rows), yes, all)
	}
}

// parityRow is a row of the test's table: a kind of database, and what its signatures
// look at.
type parityRow struct {
	db   string
	kind pe.SignatureKind
}

type parityCounts struct{ made, original, predicted, rebuilt int }

var parityKinds = []pe.SignatureKind{pe.SigFileHash, pe.SigSectionHash, pe.SigImportHash, pe.SigBody, pe.SigEntryPoint, pe.SigSection, pe.SigAbsolute,
	pe.SigEndOfFile}

// predict says from the fidelity record alone whether a signature can hit.
func predict(c *parityCase, s *paritySig) pe.Support {
	switch s.kind {
	case pe.SigSectionHash:
		return c.f.SectionHashSupport(s.section)
	case pe.SigFileHash, pe.SigImportHash:
		return c.f.Supports(s.kind)
	case pe.SigEndOfFile:
		if c.f.Supports(s.kind) == pe.SupportYes && c.f.Known(s.off, s.n) {
			return pe.SupportYes
		}
		return pe.SupportMaybe
	}
	if c.f.Supports(s.kind) != pe.SupportNo && c.f.Known(s.off, s.n) {
		return pe.SupportYes
	}
	return pe.SupportMaybe // the bytes may be the same by chance
}

// makeSignatures makes signatures of every kind for every file.
func makeSignatures(t *testing.T, rnd *rand.Rand, cases []parityCase, imports []string) []paritySig {
	var sigs []paritySig
	seen := map[string]bool{} // equal sections make equal signatures, of which the engine names one
	for i, c := range cases {
		b := c.original
		add := func(kind pe.SignatureKind, db string, off, n uint64, section int, format string, args ...any) {
			s := paritySig{kind: kind, file: i, name: fmt.Sprintf("Parity.F%03d.N%d", i, len(sigs)), off: off, n: n, section: section, db: db}
			if db == "yara" {
				s.name = strings.ReplaceAll(s.name, ".", "_")
			}
			key := fmt.Sprintf(format, args...)
			if seen[db+key] {
				return
			}
			seen[db+key] = true
			s.line = strings.ReplaceAll(key, "NAME", s.name)
			sigs = append(sigs, s)
		}
		add(pe.SigFileHash, "hdb", 0, 0, 0, "%x:%d:NAME", md5.Sum(b), len(b))
		add(pe.SigFileHash, "hsb", 0, 0, 0, "%x:%d:NAME", sha256.Sum256(b), len(b))
		if imports[i] != "" {
			add(pe.SigImportHash, "imp", 0, 0, 0, "%s:NAME", imports[i])
		}
		tail := uint64(len(b) - 48)
		add(pe.SigEndOfFile, "ndb", tail, 32, 0, "NAME:1:EOF-48:%x", b[tail:tail+32])
		programs := 0
		for j, s := range c.h.Sections {
			end := uint64(s.RawOffset) + uint64(s.RawSize)
			if s.RawSize == 0 || s.RawOffset == 0 || end > uint64(len(b)) {
				continue
			}
			add(pe.SigSectionHash, "mdb", 0, 0, j, "%d:%x:NAME", s.RawSize, md5.Sum(b[s.RawOffset:end]))
			add(pe.SigSectionHash, "msb", 0, 0, j, "%d:%x:NAME", s.RawSize, sha256.Sum256(b[s.RawOffset:end]))
			off, ok := pick(rnd, b, uint64(s.RawOffset), end)
			if !ok {
				continue
			}
			add(pe.SigBody, "ndb", off, 32, 0, "NAME:1:*:%x", b[off:off+32])
			add(pe.SigAbsolute, "ndb", off, 32, 0, "NAME:1:%d:%x", off, b[off:off+32])
			add(pe.SigSection, "ndb", off, 32, 0, "NAME:1:S%d+%d:%x", j, off-uint64(s.RawOffset), b[off:off+32])
			// With a byte left open: the engine's matcher of fixed bytes knows no ranges.
			add(pe.SigSection, "ndb", off, 32, 0, "NAME:1:SE%d:%x??%x", j, b[off:off+15], b[off+16:off+32])
			if j == len(c.h.Sections)-1 {
				add(pe.SigSection, "ndb", off, 32, 0, "NAME:1:SL+%d:%x", off-uint64(s.RawOffset), b[off:off+32])
			}
			add(pe.SigBody, "ldb", off, 32, 0, "NAME;Engine:81-255,Target:1,NumberOfSections:%d-%[1]d;0&1;%[2]x;%[3]x",
				len(c.h.Sections), b[off:off+16], b[off+16:off+32])
			add(pe.SigBody, "yara", off, 32, 0, "rule NAME { strings: $a = { %x } condition: $a }", b[off:off+32])
			add(pe.SigAbsolute, "yara", off, 32, 0, "rule NAME { strings: $a = { %x } condition: $a at %d }", b[off:off+32], off)
			add(pe.SigEndOfFile, "yara", off, 32, 0, "rule NAME { strings: $a = { %x } condition: $a and filesize == %d }", b[off:off+32], len(b))
			add(pe.SigEndOfFile, "ldb", off, 32, 0, "NAME;Engine:81-255,Target:1,FileSize:%d-%[1]d;0;%[2]x", len(b), b[off:off+32])
			if mapped := off - uint64(s.RawOffset) + 32; programs < 2 && mapped <= uint64(s.VirtualSize) {
				n := len(sigs)
				if add(pe.SigSection, "cbc", off, 32, 0, "%x", b[off:off+32]); len(sigs) > n {
					programs++
					rva := s.VirtualAddress + uint32(off-uint64(s.RawOffset)) + 16
					sigs[n].line = bytecodeSignature(sigs[n].name, fmt.Sprintf("%x", b[off:off+16]), rva, b[off+16:off+32])
				}
			}
			if ep := c.h.EntryPoint; ep >= s.VirtualAddress && ep-s.VirtualAddress+16 <= s.RawSize {
				at := uint64(s.RawOffset + ep - s.VirtualAddress)
				add(pe.SigEntryPoint, "ndb", at, 16, 0, "NAME:1:EP+0:%x", b[at:at+16])
				if at+32 <= end {
					add(pe.SigEntryPoint, "ndb", at+9, 16, 0, "NAME:1:EP+9:%x", b[at+9:at+25])
				}
				if at >= uint64(s.RawOffset)+24 {
					add(pe.SigEntryPoint, "ndb", at-24, 16, 0, "NAME:1:EP-24:%x", b[at-24:at-8])
				}
				add(pe.SigEntryPoint, "yara", at, 16, 0, "rule NAME { strings: $a = { %x } condition: $a at entrypoint }", b[at:at+16])
				add(pe.SigEntryPoint, "ldb", at, 16, 0, "NAME;Engine:81-255,Target:1,EntryPoint:%d-%[1]d;0;EP+0:%[2]x", at, b[at:at+16])
			}
		}
	}
	if len(sigs) < 500 {
		t.Errorf("only %d signatures", len(sigs))
	}
	return sigs
}

// pick finds 32 bytes with something in them.
func pick(rnd *rand.Rand, b []byte, from, to uint64) (uint64, bool) {
	for try := 0; try < 50 && to-from > 64; try++ {
		off := from + uint64(rnd.Int63n(int64(to-from-32)))
		distinct := map[byte]bool{}
		for _, v := range b[off : off+32] {
			distinct[v] = true
		}
		if len(distinct) >= 12 {
			return off, true
		}
	}
	return 0, false
}

var impLine = regexp.MustCompile(`IMP: ([0-9a-f]{32}:\d+)`)

// importHashes asks the engine for the import hash of every original, without
// its overlay, in which other images may be packed.
func importHashes(t *testing.T, dir string, cases []parityCase) []string {
	db, file := filepath.Join(dir, "none.imp"), filepath.Join(dir, "bare")
	writeFile(t, db, []byte("00000000000000000000000000000000:1:None\n"))
	out := make([]string, len(cases))
	for i, c := range cases {
		writeFile(t, file, c.original[:c.f.FileSize])
		b, _ := exec.Command("clamscan", "--debug", "--no-summary", "-d", db, file).CombinedOutput()
		if m := impLine.FindSubmatch(b); m != nil && !c.unpacked && !bytes.HasSuffix(m[1], []byte(":0")) {
			out[i] = string(m[1])
		}
	}
	return out
}

// clamHits scans a folder and returns "file signature" for every hit.
func clamHits(t *testing.T, dir, sub string) map[string]bool {
	cmd := exec.Command("clamscan", "--allmatch", "--bytecode-unsigned=yes", "--no-summary", "-d", filepath.Join(dir, "db"), filepath.Join(dir, sub))
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatalf("clamscan %s: %v: %s", sub, err, out)
	}
	hits := map[string]bool{}
	for _, line := range strings.Split(string(out), "\n") {
		file, rest, ok := strings.Cut(line, ": ")
		if sig, found := strings.CutSuffix(rest, " FOUND"); ok && found {
			sig = strings.TrimPrefix(strings.TrimSuffix(sig, ".UNOFFICIAL"), "YARA.")
			hits[filepath.Base(file)+" "+sig] = true
		}
	}
	return hits
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
