package ntguest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// ram is the guest's physical memory as a file that this process can change, as an
// agent outside of the guest changes it.
type ram struct {
	t *testing.T
	f *os.File
}

// ramFile returns QEMU's options that put the guest's memory into a file.
func ramFile(t *testing.T) (args []string, path string) {
	path = filepath.Join(t.TempDir(), "ram")
	return []string{"-object", "memory-backend-file,id=ram,size=512M,share=on,mem-path=" + path, "-machine", "memory-backend=ram"}, path
}

func openRAM(t *testing.T, path string) ram {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return ram{t, f}
}

func (r ram) read(pa uint64, n int) []byte {
	r.t.Helper()
	p := make([]byte, n)
	if _, err := r.f.ReadAt(p, int64(pa)); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// noExecute sets or clears NX in each present user entry of a top-level page table.
func (r ram) noExecute(dtb uint64, set bool) {
	r.t.Helper()
	for i := range uint64(256) {
		at := dtb + 8*i
		entry := binary.LittleEndian.Uint64(r.read(at, 8))
		if entry&pteValid == 0 {
			continue
		}
		entry &^= uint64(pteNX)
		if set {
			entry |= pteNX
		}
		if _, err := r.f.WriteAt(binary.LittleEndian.AppendUint64(nil, entry), int64(at)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// page asks for the state of a process's page, and its frame.
func (g *guest) page(pid, va uint64) (state string, pa uint64) {
	g.t.Helper()
	g.send("pages %d %#x", pid, va)
	m := g.expect(fmt.Sprintf(`^PAGE %d %#x (\w+) (0x\w+)$`, pid, va))
	return m[1], parseHex(g.t, m[2])
}

func (g *guest) progress(pid uint64) uint64 {
	g.t.Helper()
	g.send("progress %d", pid)
	n, err := strconv.ParseUint(g.expect(fmt.Sprintf(`^PROGRESS %d (\d+)$`, pid))[1], 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// frozen does something while nobody runs in user mode. Afterwards every processor has left
// its address space, so that none keeps a translation.
func (g *guest) frozen(do func()) {
	g.t.Helper()
	g.send("freeze")
	g.expect(`^FROZEN 1$`)
	do()
	g.send("thaw")
	g.expect(`^FROZEN 0$`)
}

// TestPageIn asks for faults that no instruction of the process makes: one on a page
// of a file that was trimmed, one on a page that was never there, one on a page that is.
func TestPageIn(t *testing.T) {
	for _, shadow := range []bool{false, true} {
		t.Run(fmt.Sprintf("shadow %v", shadow), func(t *testing.T) {
			args, path := ramFile(t)
			g := boot(t, Options{Build: "10.0.19041", Seed: 8, KVAShadow: shadow}, "q35", args...)
			g.heartbeats(1)
			mem := openRAM(t, path)
			kernel32 := g.machine.b.files.byName["kernel32.dll"]
			for _, name := range []string{"burn.exe", "wowburn.exe"} {
				pid := g.start(name)
				fault := func(va uint64) {
					g.send("fault %d %#x", pid, va)
					g.expect(fmt.Sprintf(`^FAULT %d %s %#x$`, pid, regexp.QuoteMeta(name), va))
				}
				g.heartbeats(1)
				for _, verb := range []string{"trim", "evict"} {
					if name != "burn.exe" {
						break
					}
					g.frozen(func() { // another process would bring a file's pages back into its section
						g.send("%s %d", verb, pid)
						if out := g.expect(`^(TRIMM|EVICT)ED (\d+)$`)[2]; out == "0" {
							t.Errorf("%s: nothing to %s", name, verb)
						}
						want := map[string]string{"trim": "section", "evict": "file"}[verb]
						if state, pa := g.page(pid, kernel32.base); state != want || (pa != 0) != (want == "section") {
							t.Errorf("%s: after %s the page is %q at %#x", name, verb, state, pa)
						}
					})
					fault(kernel32.base)
					state, pa := g.page(pid, kernel32.base)
					if state != "present" || !bytes.Equal(mem.read(pa, pageSize), kernel32.content[:pageSize]) {
						t.Errorf("%s: after the fault the page is %q at %#x; the file's content: %v", name, state, pa,
							bytes.Equal(mem.read(pa, pageSize), kernel32.content[:pageSize]))
					}
				}
				const untouched = stackArea + 4*pageSize
				if state, _ := g.page(pid, untouched); state != "demand" {
					t.Errorf("%s: an untouched page of the stack is %q", name, state)
				}
				fault(untouched)
				state, pa := g.page(pid, untouched)
				if state != "present" || !bytes.Equal(mem.read(pa, pageSize), make([]byte, pageSize)) {
					t.Errorf("%s: after the fault the page is %q at %#x", name, state, pa)
				}
				if state, _ := g.page(pid, untouched+pageSize); state != "demand" {
					t.Errorf("%s: the page beside it is %q", name, state)
				}
				fault(untouched)
				if state, again := g.page(pid, untouched); state != "present" || again != pa {
					t.Errorf("%s: a fault on a present page moved it from %#x to %#x (%s)", name, pa, again, state)
				}
				a := g.progress(pid)
				g.heartbeats(1)
				if b := g.progress(pid); a == b {
					t.Errorf("%s does not go on after the faults", name)
				}
			}
		})
	}
}

// TestHold makes processes' code unfetchable from outside: they must make no step until
// it is fetchable again, keep nobody from running meanwhile, and die if they are ended.
func TestHold(t *testing.T) {
	for _, shadow := range []bool{false, true} {
		t.Run(fmt.Sprintf("shadow %v", shadow), func(t *testing.T) {
			args, path := ramFile(t)
			g := boot(t, Options{Build: "10.0.22000", Seed: 9, KVAShadow: shadow}, "q35", args...)
			g.heartbeats(1)
			mem := openRAM(t, path)
			names := []string{"burn.exe", "wowburn.exe", "threads.exe", "thrash.exe", "sleeper.exe"}
			var pids []uint64
			for _, name := range names {
				pids = append(pids, g.start(name))
			}
			g.heartbeats(1)
			truth := g.truth()
			table := func(pid uint64) uint64 {
				p := truth.byPID(pid)
				if shadow {
					return p.UserDTB
				}
				return p.DTB
			}
			for i, pid := range pids {
				a := g.progress(pid)
				g.heartbeats(1)
				if b := g.progress(pid); a == b {
					t.Errorf("%s makes no progress", names[i])
				}
				mem.noExecute(table(pid), true)
			}
			g.frozen(func() {})
			bystander := g.pidOf("spin.exe")
			moved := g.progress(bystander)
			held := make([]uint64, len(pids))
			for i, pid := range pids {
				held[i] = g.progress(pid)
			}
			g.heartbeats(3)
			for i, pid := range pids {
				if n := g.progress(pid); n != held[i] {
					t.Errorf("%s is held and its counter went from %d to %d", names[i], held[i], n)
				}
			}
			if g.progress(bystander) == moved {
				t.Error("spin.exe makes no progress beside those that are held")
			}
			for i, pid := range pids[:2] { // ended while they are held
				g.send("kill %d 0xC0000906", pid)
				g.expect(fmt.Sprintf(`^EXIT %d %s 0xc0000906$`, pid, regexp.QuoteMeta(names[i])))
			}
			for i, pid := range pids[2:] {
				mem.noExecute(table(pid), false)
				g.heartbeats(1)
				if g.progress(pid) == held[2+i] {
					t.Errorf("%s does not go on after its release", names[2+i])
				}
			}
			g.heartbeats(2)
		})
	}
}

// TestPIDReuse starts another program under the id of one that has ended.
func TestPIDReuse(t *testing.T) {
	g := boot(t, Options{Build: "10.0.19041", Seed: 10}, "q35")
	g.heartbeats(1)
	g.send("start burn.exe 6000")
	g.expect(`^START 6000 burn.exe$`)
	first := *g.truth().byPID(6000)
	g.send("kill 6000 1")
	g.expect(`^EXIT 6000 burn.exe 0x1$`)
	g.bad = nil
	g.send("start service.exe 6000")
	g.expect(`^ERROR start \d+$`) // while the ended one is there
	g.send("reap")
	g.expect(`^REAPED \d+$`)
	g.send("start service.exe 6000")
	g.expect(`^START 6000 service.exe$`)
	second := g.truth().byPID(6000)
	if second == nil || second.Name != "service.exe" || !second.Created.After(first.Created) {
		t.Errorf("process 6000 is %+v, was %+v", second, first)
	}
}

// TestManyKills starts and ends processes of every kind, 200 of them (make test-long: a
// thousand), and looks for what they leave behind.
func TestManyKills(t *testing.T) {
	const batch = 40
	rounds := long(5, 25)
	g := boot(t, Options{Build: "10.0.19041", Seed: 11, KVAShadow: true}, "q35")
	g.heartbeats(1)
	g.send("pause")
	g.expect(`^CHURN 0$`)
	g.send("kill %d 0xC0000906", g.pidOf("faulter.exe")) // its memory comes and goes
	g.expect(`^EXIT \d+ faulter.exe`)
	g.send("reap")
	g.expect(`^REAPED `)
	names := []string{"burn.exe", "sleeper.exe", "faulter.exe", "thrash.exe", "service.exe", "threads.exe",
		"wowburn.exe", "wowsleeper.exe", "wowfaulter.exe", "wowthrash.exe", "wowservice.exe", "wowthreads.exe", "malware.exe", "svchost.exe"}
	next := 0
	free := func() int {
		n, err := strconv.Atoi(g.expect(`^HB .* free=(\d+)$`)[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	cycle := func() {
		var pids []string
		for range batch {
			g.send("start %s", names[next%len(names)])
			next++
		}
		for range batch {
			pids = append(pids, g.expect(`^START (\d+) `)[1])
		}
		g.heartbeats(1) // let them run
		g.send("trim %s", pids[next%batch])
		g.expect(`^TRIMMED `)
		for _, pid := range pids {
			g.send("kill %s 0xC0000906", pid)
		}
		for range batch {
			g.expect(`^EXIT \d+ \S+ 0xc0000906$`)
		}
		g.send("reap")
		g.expect(`^REAPED ` + strconv.Itoa(batch) + `$`)
	}
	cycle() // maps kernel memory that stays mapped
	early := free()
	for range rounds {
		cycle()
	}
	late := free()
	if late < early-50 { // one frame a process would be more
		t.Errorf("%d free frames before %d processes, %d after", early, batch*rounds, late)
	}
	t.Logf("%d free frames before %d processes, %d after", early, batch*rounds, late)
	if n := len(g.truth().Processes); n != len(g.machine.Truth.Processes)+1 && n != len(g.machine.Truth.Processes) {
		t.Errorf("%d processes are listed, %d were laid out", n, len(g.machine.Truth.Processes))
	}
}

func parseHex(t *testing.T, s string) uint64 {
	t.Helper()
	v, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
