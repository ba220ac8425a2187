package confine

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h): the number of the call, the
// architecture that it was made for, and the arguments. A filter sees 32 bits of an
// argument at a time.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

// x32Bit marks calls of the x32 interface, which has the same architecture number
// (asm/unistd.h).
const x32Bit = 0x40000000

const (
	allow  = uint32(unix.SECCOMP_RET_ALLOW)
	deny   = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	absent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	kill   = uint32(unix.SECCOMP_RET_KILL_PROCESS)
)

// test is a condition on the low half of an argument. The kernel looks at no more of the
// arguments that are tested here.
type test struct {
	arg  uint32
	cond bpf.JumpTest
	val  uint32
}

// program returns the filter for the process with the given id.
func program(pid int) []bpf.Instruction {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 1},
		bpf.RetConstant{Val: kill}, // the 32-bit interface has other numbers for its calls
		bpf.LoadAbsolute{Off: dataNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: x32Bit, SkipFalse: 1},
		bpf.RetConstant{Val: kill},
	}
	always := func(what uint32, numbers ...uint32) {
		for _, n := range numbers {
			p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: n, SkipFalse: 1}, bpf.RetConstant{Val: what})
		}
	}
	always(allow, needed...)
	for _, c := range conditional(pid) {
		// All tests of a row must hold; otherwise the filter goes on with the next row.
		body := make([]bpf.Instruction, 0, 2*len(c.tests)+1)
		for i, t := range c.tests {
			left := uint8(2*(len(c.tests)-i-1) + 1)
			body = append(body, bpf.LoadAbsolute{Off: dataArgs + 8*t.arg, Size: 4},
				bpf.JumpIf{Cond: t.cond, Val: t.val, SkipFalse: left})
		}
		body = append(body, bpf.RetConstant{Val: allow}, bpf.LoadAbsolute{Off: dataNumber, Size: 4})
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: c.number, SkipFalse: uint8(len(body))})
		p = append(p, body...)
	}
	always(absent, unix.SYS_CLONE3)
	always(kill, deadly...)
	return append(p, bpf.RetConstant{Val: deny})
}

// filter installs the filter on every thread of the process and checks that it is in force.
func filter(pid int) error {
	raw, err := bpf.Assemble(program(pid))
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	var pin runtime.Pinner // the kernel gets the program's address as a number
	defer pin.Unpin()
	pin.Pin(&code[0])
	prog := &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	thread, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(prog)))
	if e != 0 {
		return e
	}
	if thread != 0 {
		return fmt.Errorf("thread %d does not take the filter", thread)
	}
	if _, err := unix.Getpgid(0); !errors.Is(err, unix.EPERM) {
		//nolint:errorlint // the error can be nil, and is no cause of this one
		return fmt.Errorf("the filter is not in force: a call that it refuses gives %v", err)
	}
	return nil
}
