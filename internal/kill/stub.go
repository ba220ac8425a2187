package kill

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A system call stub of ntdll is one of
//
//	mov r10, rcx; mov eax, NUMBER; syscall; ret                                   (6.0 to 10.0.10240)
//	mov r10, rcx; mov eax, NUMBER; test byte [7ffe0308h], 1; jne 1f; syscall; ret; 1: int 2eh; ret
const (
	shortStub = 11 // bytes
	longStub  = 24
	// maxSystemCall bounds a number: ntoskrnl's are in the first of the tables of 4096.
	maxSystemCall = 0x1000
)

// errStub reports code that is not a system call stub. It was changed, or this build writes
// stubs in an unknown form.
var errStub = errors.New("its code is not a system call stub, so it is hooked or of an unknown form")

// stubLength returns the length of a stub in bytes. code has its first shortStub bytes.
func stubLength(code []byte) int {
	if len(code) > 8 && code[8] == 0xf6 {
		return longStub
	}
	return shortStub
}

// parseStub returns the number of the system call that a stub makes. code has the length of
// a stub. parseStub fails if the code does anything else.
func parseStub(code []byte) (number uint32, err error) {
	if len(code) < shortStub || string(code[:3]) != "\x4c\x8b\xd1" || code[3] != 0xb8 {
		return 0, fmt.Errorf("%w: % x", errStub, code[:min(len(code), 8)])
	}
	number = binary.LittleEndian.Uint32(code[4:])
	rest := string(code[8:])
	if rest != "\x0f\x05\xc3" && rest != "\xf6\x04\x25\x08\x03\xfe\x7f\x01\x75\x03\x0f\x05\xc3\xcd\x2e\xc3" {
		return 0, fmt.Errorf("%w: % x", errStub, code)
	}
	if number >= maxSystemCall {
		return 0, fmt.Errorf("%w: it makes system call %#x", errStub, number)
	}
	return number, nil
}
