package history

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

// writerVariable has the test binary be a writer on the state directory of its value.
const writerVariable = "VMAV_TEST_HISTORY_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerVariable); dir != "" {
		if err := writeForEver(dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// writeForEver records scans with findings and kills, and prints the ID of each finding
// as soon as it is recorded, as a command does.
func writeForEver(dir string) error {
	ctx := context.Background()
	for {
		db, err := Open(dir)
		if err != nil {
			return err
		}
		for n := range uint64(5) {
			r, err := db.Begin(ctx, Run{Origin: self, Operation: OperationScan, Domain: "win10"})
			if err != nil {
				return err
			}
			d := scan()
			for i := range n {
				f := found(4*i+8, "A")
				f.Verdict.Action = verdict.Kill
				if err := r.Found(ctx, &f); err != nil {
					return err
				}
				fmt.Println(f.ID)
				if err := r.Acting(ctx, verdict.Kill, f.ID); err != nil {
					return err
				}
				f.Action, f.Outcome = verdict.Kill, finding.Outcome{Code: finding.OutcomeKilled}
				d.Findings = append(d.Findings, f)
			}
			if err := r.End(ctx, d); err != nil {
				return err
			}
			d = scan(found(4000, "B"))
			if _, err := recordScan(ctx, db, nil, d); err != nil {
				return err
			}
			fmt.Println(d.Findings[0].ID)
		}
		if err := db.Close(); err != nil {
			return err
		}
	}
}

// startWriter starts a writer; what it printed is read from the pipe when it has ended.
func startWriter(t *testing.T, dir string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerVariable+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// Writers die at any moment, several at once beside each other: the history opens, its
// chain holds, and no finding that was told of is lost.
func TestNothingReportedIsLostWhenWritersAreKilled(t *testing.T) {
	const rounds = 25
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, uint64(os.Getpid())))
	told := map[int64]bool{}
	for range rounds {
		var cmds []*exec.Cmd
		var outs []io.Reader
		for range 3 {
			cmd, out := startWriter(t, dir)
			cmds, outs = append(cmds, cmd), append(outs, out)
		}
		lines, one := make(chan []string, len(outs)), make(chan bool, 1000)
		for _, out := range outs {
			go func() {
				defer func() { // one that ended by itself is waited for no longer
					for range 20 {
						select {
						case one <- true:
						default:
						}
					}
				}()
				var all []string
				for in := bufio.NewScanner(out); in.Scan(); {
					all = append(all, in.Text())
					select {
					case one <- true:
					default:
					}
				}
				lines <- all
			}()
		}
		for range rng.IntN(20) {
			<-one
		}
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
		for _, cmd := range cmds {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		for range cmds {
			for _, line := range <-lines {
				id, err := strconv.ParseInt(line, 10, 64)
				if err != nil {
					t.Fatalf("a writer says %q", line)
				}
				if told[id] {
					t.Errorf("finding %d was told of twice", id)
				}
				told[id] = true
			}
		}
		for _, cmd := range cmds {
			_ = cmd.Wait() // killed
		}
		checkTold(t, dir, told)
	}
	if len(told) < rounds {
		t.Fatalf("%d findings in %d rounds: the writers hardly came to write", len(told), rounds)
	}
	t.Logf("%d writers killed, %d findings told of", 3*rounds, len(told))
}

// checkTold verifies a history and looks for the findings in it.
func checkTold(t *testing.T, dir string, told map[int64]bool) {
	t.Helper()
	db, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	verify(t, db)
	all, err := db.Entries(context.Background(), Filter{})
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[int64]bool)
	for _, e := range all {
		have[e.ID] = true
	}
	for id := range told {
		if !have[id] {
			t.Errorf("finding %d was told of and is lost", id)
		}
	}
}

// A power cut leaves the write-ahead log cut off or with pages that were not written: what
// was synced before is there, the rest is as if it had not been, and the chain holds.
func TestWriteAheadLogCutOffAtAnyPlace(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	db := openDB(t, dir)
	// How long the log was when each finding was on disk.
	wal := filepath.Join(dir, fileName+"-wal")
	type point struct{ size, id int64 }
	var points []point
	for i := range 20 {
		d := scan(found(uint64(4*i+8), "A"))
		if _, err := recordScan(ctx, db, nil, d); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(wal)
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, point{st.Size(), d.Findings[0].ID})
	}
	whole := map[string][]byte{}
	for _, name := range []string{fileName, fileName + "-wal", keyName} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		whole[name] = data
	}
	size := int64(len(whole[fileName+"-wal"]))
	rng := rand.New(rand.NewPCG(2, 3))
	for i := range 120 {
		cut := points[0].size + rng.Int64N(size-points[0].size+1)
		if i < len(points) {
			cut = points[i].size
		}
		tail := "cut"
		copied := t.TempDir()
		for name, data := range whole {
			if name == fileName+"-wal" {
				if i%2 == 0 {
					data = data[:cut]
				} else {
					tail = "zeros"
					data = append(append([]byte{}, data[:cut]...), make([]byte, size-cut)...)
				}
			}
			if err := os.WriteFile(filepath.Join(copied, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		told := map[int64]bool{}
		for _, p := range points {
			if p.size <= cut {
				told[p.id] = true
			}
		}
		checkTold(t, copied, told)
		if t.Failed() {
			t.Fatalf("%s at %d of %d", tail, cut, size)
		}
	}
}

// Of what a full disk does not take, nothing is left behind, and the error says so.
func TestADatabaseThatCannotGrow(t *testing.T) {
	ctx := context.Background()
	db := openDB(t, t.TempDir())
	db.sql.SetMaxOpenConns(1) // the limit is the connection's
	if _, err := db.sql.Exec("PRAGMA max_page_count=40"); err != nil {
		t.Fatal(err)
	}
	var told []int64
	for {
		d := scan(found(8, "A"))
		d.Findings[0].Detail = strings.Repeat("x", 5000)
		if _, err := recordScan(ctx, db, nil, d); err != nil {
			if !strings.Contains(err.Error(), "full") || d.Findings[0].ID != 0 {
				t.Errorf("finding %d: %v", d.Findings[0].ID, err)
			}
			break
		}
		told = append(told, d.Findings[0].ID)
	}
	if len(told) == 0 || len(told) > 100 {
		t.Fatalf("%d scans in 40 pages", len(told))
	}
	verify(t, db)
	if all, err := db.Entries(ctx, Filter{}); err != nil || len(all) != len(told) {
		t.Errorf("%d entries, %v; want %d", len(all), err, len(told))
	}
}
