// Package gdbtest has a debugger for tests of guests under QEMU. It imports no other
// package of the project.
package gdbtest

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hang is the time after which a silent QEMU counts as stuck.
const hang = 3 * time.Minute

// Numbers of registers in QEMU's remote protocol for x86-64 (its gdb-xml/i386-64bit.xml).
const (
	RAX    = 0
	RSP    = 7
	RIP    = 16
	Flags  = 17
	CS     = 18
	GSBase = 25
	CR0    = 27
	CR3    = 29
	CR4    = 30
	ST0    = 33
	FCtrl  = 41
	XMM0   = 49
	MXCSR  = 65
)

// Order are the general registers by those numbers.
var Order = []string{"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"}

// Debugger speaks GDB's remote protocol with QEMU. It stops the guest between two
// instructions and changes what a hypervisor could change. Its methods end the test T on
// failure.
type Debugger struct {
	T    testing.TB // what fails where QEMU does not answer
	conn net.Conn
	r    *bufio.Reader
}

// Socket returns QEMU's option for a debugger's socket, and the path of that socket.
func Socket(t testing.TB) (args []string, path string) {
	path = filepath.Join(t.TempDir(), "gdb")
	return []string{"-gdb", "unix:" + path + ",server=on,wait=off"}, path
}

// Attach connects to QEMU, which stops the guest.
func Attach(t testing.TB, path string) *Debugger {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	d := &Debugger{T: t, conn: conn, r: bufio.NewReader(conn)}
	t.Cleanup(func() { conn.Close() })
	d.put("qAttached") // behind any word of the stop itself
	for strings.HasPrefix(d.get(), "T") {
	}
	d.Ask("qXfer:features:read:target.xml:0,ffb") // only who asks this may read single registers
	return d
}

func (d *Debugger) put(text string) {
	d.T.Helper()
	var sum byte
	for i := range len(text) {
		sum += text[i]
	}
	if _, err := fmt.Fprintf(d.conn, "$%s#%02x", text, sum); err != nil {
		d.T.Fatal(err)
	}
}

// get returns the next packet.
func (d *Debugger) get() string {
	d.T.Helper()
	if err := d.conn.SetReadDeadline(time.Now().Add(hang)); err != nil {
		d.T.Fatal(err)
	}
	if _, err := d.r.ReadString('$'); err != nil {
		d.T.Fatalf("QEMU's debug socket: %v", err)
	}
	text, err := d.r.ReadString('#')
	if err == nil {
		_, err = d.r.Discard(2)
	}
	if err == nil {
		_, err = d.conn.Write([]byte("+"))
	}
	if err != nil {
		d.T.Fatalf("QEMU's debug socket: %v", err)
	}
	return text[:len(text)-1]
}

// Ask sends a packet and returns the answer.
func (d *Debugger) Ask(format string, args ...any) string {
	d.T.Helper()
	d.put(fmt.Sprintf(format, args...))
	return d.get()
}

// Must sends a packet to which the answer must be OK.
func (d *Debugger) Must(format string, args ...any) {
	d.T.Helper()
	if got := d.Ask(format, args...); got != "OK" {
		d.T.Fatalf("debugger: %s: %q", fmt.Sprintf(format, args...), got)
	}
}

// Reg reads a register as raw little-endian bytes.
func (d *Debugger) Reg(n int) []byte {
	d.T.Helper()
	raw, err := hex.DecodeString(d.Ask("p%x", n))
	if err != nil || len(raw) == 0 {
		d.T.Fatalf("debugger: register %d: %v", n, err)
	}
	return raw
}

// Reg64 reads a register of up to 64 bits.
func (d *Debugger) Reg64(n int) uint64 {
	raw := append(d.Reg(n), make([]byte, 8)...)
	return binary.LittleEndian.Uint64(raw)
}

// SetReg changes a register; raw is little-endian.
func (d *Debugger) SetReg(n int, raw []byte) {
	d.T.Helper()
	d.Must("P%x=%x", n, raw)
}

// SetReg64 changes a register of up to 64 bits.
func (d *Debugger) SetReg64(n int, v uint64) {
	d.T.Helper()
	d.SetReg(n, binary.LittleEndian.AppendUint64(nil, v))
}

// Read reads n bytes at a virtual address of the current vCPU.
func (d *Debugger) Read(va uint64, n int) []byte {
	d.T.Helper()
	raw, err := hex.DecodeString(d.Ask("m%x,%x", va, n))
	if err != nil || len(raw) != n {
		d.T.Fatalf("debugger: read %#x: %v", va, err)
	}
	return raw
}

// Write writes to a virtual address of the current vCPU.
func (d *Debugger) Write(va uint64, raw []byte) {
	d.T.Helper()
	d.Must("M%x,%x:%x", va, len(raw), raw)
}

// Cont lets the guest run until a breakpoint, and makes the vCPU that reached it the
// current one.
func (d *Debugger) Cont() {
	d.T.Helper()
	d.Stopped(d.Ask("vCont;c"))
}

// Step executes n instructions of a vCPU while the others are stopped.
func (d *Debugger) Step(thread string, n int) {
	d.T.Helper()
	for range n {
		d.Stopped(d.Ask("vCont;s:%s", thread))
	}
}

// Stopped parses a stop reply "T05thread:p01.02;", makes that vCPU the current one and
// returns its thread.
func (d *Debugger) Stopped(reply string) string {
	d.T.Helper()
	_, rest, ok := strings.Cut(reply, "thread:")
	thread, _, ok2 := strings.Cut(rest, ";")
	if !ok || !ok2 {
		d.T.Fatalf("debugger: stopped with %q", reply)
	}
	d.Must("Hg%s", thread)
	return thread
}

// Run lets the guest run, until Halt.
func (d *Debugger) Run() { d.put("vCont;c") }

// Halt stops the guest.
func (d *Debugger) Halt() {
	d.T.Helper()
	if _, err := d.conn.Write([]byte{3}); err != nil {
		d.T.Fatal(err)
	}
	d.get()
}

// Threads returns the threads of the vCPUs.
func (d *Debugger) Threads() []string {
	d.T.Helper()
	var out []string
	for reply := d.Ask("qfThreadInfo"); strings.HasPrefix(reply, "m"); reply = d.Ask("qsThreadInfo") {
		out = append(out, strings.Split(reply[1:], ",")...)
	}
	return out
}

// Detach lets the guest run and ends the connection.
func (d *Debugger) Detach() {
	d.T.Helper()
	d.put("D")
	d.get()
	d.conn.Close()
}
