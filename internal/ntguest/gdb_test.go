package ntguest

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Numbers of registers in QEMU's remote protocol for x86-64 (its gdb-xml/i386-64bit.xml).
const (
	gdbRAX    = 0
	gdbRSP    = 7
	gdbRIP    = 16
	gdbFlags  = 17
	gdbCS     = 18
	gdbGSBase = 25
	gdbCR0    = 27
	gdbCR3    = 29
	gdbCR4    = 30
	gdbST0    = 33
	gdbFCtrl  = 41
	gdbXMM0   = 49
	gdbMXCSR  = 65
)

// gdbOrder are the general registers by those numbers.
var gdbOrder = []string{"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"}

// debugger speaks GDB's remote protocol with QEMU: it stops the guest between two
// instructions and changes what a hypervisor could change.
type debugger struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

// gdbSocket returns QEMU's option for a debugger's socket, and its path.
func gdbSocket(t *testing.T) (args []string, path string) {
	path = filepath.Join(t.TempDir(), "gdb")
	return []string{"-gdb", "unix:" + path + ",server=on,wait=off"}, path
}

// attach connects to QEMU, which stops the guest.
func attach(t *testing.T, path string) *debugger {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	d := &debugger{t: t, conn: conn, r: bufio.NewReader(conn)}
	t.Cleanup(func() { conn.Close() })
	d.put("qAttached") // behind any word of the stop itself
	for strings.HasPrefix(d.get(), "T") {
	}
	d.ask("qXfer:features:read:target.xml:0,ffb") // only who asks this may read single registers
	return d
}

func (d *debugger) put(text string) {
	d.t.Helper()
	var sum byte
	for i := range len(text) {
		sum += text[i]
	}
	if _, err := fmt.Fprintf(d.conn, "$%s#%02x", text, sum); err != nil {
		d.t.Fatal(err)
	}
}

// get returns the next packet.
func (d *debugger) get() string {
	d.t.Helper()
	d.conn.SetReadDeadline(time.Now().Add(hang))
	if _, err := d.r.ReadString('$'); err != nil {
		d.t.Fatalf("QEMU's debug socket: %v", err)
	}
	text, err := d.r.ReadString('#')
	if err == nil {
		_, err = d.r.Discard(2)
	}
	if err == nil {
		_, err = d.conn.Write([]byte("+"))
	}
	if err != nil {
		d.t.Fatalf("QEMU's debug socket: %v", err)
	}
	return text[:len(text)-1]
}

func (d *debugger) ask(format string, args ...any) string {
	d.t.Helper()
	d.put(fmt.Sprintf(format, args...))
	return d.get()
}

func (d *debugger) must(format string, args ...any) {
	d.t.Helper()
	if got := d.ask(format, args...); got != "OK" {
		d.t.Fatalf("debugger: %s: %q", fmt.Sprintf(format, args...), got)
	}
}

// reg reads a register as it lies in the packet: little-endian.
func (d *debugger) reg(n int) []byte {
	d.t.Helper()
	raw, err := hex.DecodeString(d.ask("p%x", n))
	if err != nil || len(raw) == 0 {
		d.t.Fatalf("debugger: register %d: %v", n, err)
	}
	return raw
}

func (d *debugger) reg64(n int) uint64 {
	raw := append(d.reg(n), make([]byte, 8)...)
	return binary.LittleEndian.Uint64(raw)
}

func (d *debugger) setReg(n int, raw []byte) {
	d.t.Helper()
	d.must("P%x=%x", n, raw)
}

func (d *debugger) setReg64(n int, v uint64) {
	d.t.Helper()
	d.setReg(n, binary.LittleEndian.AppendUint64(nil, v))
}

// read and write work on virtual addresses of the vCPU that is looked at.
func (d *debugger) read(va uint64, n int) []byte {
	d.t.Helper()
	raw, err := hex.DecodeString(d.ask("m%x,%x", va, n))
	if err != nil || len(raw) != n {
		d.t.Fatalf("debugger: read %#x: %v", va, err)
	}
	return raw
}

func (d *debugger) write(va uint64, raw []byte) {
	d.t.Helper()
	d.must("M%x,%x:%x", va, len(raw), raw)
}

// cont lets the guest run until a breakpoint and looks at the vCPU that met it.
func (d *debugger) cont() {
	d.t.Helper()
	d.stopped(d.ask("vCont;c"))
}

// step executes n instructions of the vCPU looked at; the others stand still.
func (d *debugger) step(thread string, n int) {
	d.t.Helper()
	for range n {
		d.stopped(d.ask("vCont;s:%s", thread))
	}
}

// stopped reads a stop reply "T05thread:p01.02;" and turns to that vCPU.
func (d *debugger) stopped(reply string) string {
	d.t.Helper()
	_, rest, ok := strings.Cut(reply, "thread:")
	thread, _, ok2 := strings.Cut(rest, ";")
	if !ok || !ok2 {
		d.t.Fatalf("debugger: stopped with %q", reply)
	}
	d.must("Hg%s", thread)
	return thread
}

// run lets the guest go on; halt stops it again.
func (d *debugger) run() { d.put("vCont;c") }

func (d *debugger) halt() {
	d.t.Helper()
	if _, err := d.conn.Write([]byte{3}); err != nil {
		d.t.Fatal(err)
	}
	d.get()
}

// threads lists the vCPUs.
func (d *debugger) threads() []string {
	d.t.Helper()
	var out []string
	for reply := d.ask("qfThreadInfo"); strings.HasPrefix(reply, "m"); reply = d.ask("qsThreadInfo") {
		out = append(out, strings.Split(reply[1:], ",")...)
	}
	return out
}

func parseHex(t *testing.T, s string) uint64 {
	t.Helper()
	v, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
