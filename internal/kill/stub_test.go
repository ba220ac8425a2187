package kill

import (
	"errors"
	"strings"
	"testing"
)

const (
	windows7  = "\x4c\x8b\xd1\xb8\x29\x00\x00\x00\x0f\x05\xc3"
	windows10 = "\x4c\x8b\xd1\xb8\x2c\x00\x00\x00\xf6\x04\x25\x08\x03\xfe\x7f\x01\x75\x03\x0f\x05\xc3\xcd\x2e\xc3"
)

func TestStubs(t *testing.T) {
	for name, tt := range map[string]struct {
		code   string
		number uint32
		ok     bool
	}{
		"Windows 7":              {windows7, 0x29, true},
		"Windows 10":             {windows10, 0x2c, true},
		"a jump at its start":    {"\xe9\x00\x10\x00\x00\x00\x00\x00" + windows10[8:], 0, false},
		"a jump after the move":  {windows10[:3] + "\xe9\x00\x10\x00\x00" + windows10[8:], 0, false},
		"a jump in its middle":   {windows10[:8] + "\xe9\x00\x10\x00\x00" + windows10[13:], 0, false},
		"another address tested": {strings.Replace(windows10, "\xfe\x7f", "\xfe\x7e", 1), 0, false},
		"another branch":         {strings.Replace(windows10, "\x75\x03", "\x75\x04", 1), 0, false},
		"a call behind it":       {windows7[:8] + "\x0f\x05\xe8", 0, false},
		"win32k's number":        {windows7[:4] + "\x29\x10\x00\x00" + windows7[8:], 0, false},
		"a huge number":          {windows7[:4] + "\xff\xff\xff\xff" + windows7[8:], 0, false},
		"cut off":                {windows10[:20], 0, false},
		"nothing":                {"", 0, false},
		"zeros":                  {strings.Repeat("\x00", longStub), 0, false},
	} {
		code := []byte(tt.code)
		if n := stubLength(code); tt.ok && n != len(code) {
			t.Errorf("%s: length %d, want %d", name, n, len(code))
		}
		number, err := parseStub(code)
		if number != tt.number || (err == nil) != tt.ok || err != nil && !errors.Is(err, errStub) {
			t.Errorf("%s: %#x, %v; want %#x", name, number, err, tt.number)
		}
	}
}

// What is taken for a stub is one, byte by byte, and what is not gives no number.
func FuzzStub(f *testing.F) {
	f.Add([]byte(windows7))
	f.Add([]byte(windows10))
	f.Fuzz(func(t *testing.T, code []byte) {
		number, err := parseStub(code)
		if err != nil {
			if number != 0 {
				t.Errorf("number %#x with error %v", number, err)
			}
			return
		}
		if len(code) != stubLength(code) || number >= maxSystemCall {
			t.Errorf("% x is taken for system call %#x", code, number)
		}
	})
}

// A frame lies on one page, below the thread's own stack, as a called function expects.
func TestFrames(t *testing.T) {
	for rsp := uint64(0x7000_0000_2000); rsp < 0x7000_0000_4000; rsp++ {
		at := frameBelow(rsp)
		if at%16 != 8 || at/0x1000 != (at+frameSize-1)/0x1000 || at+frameSize > rsp-stackDistance || rsp-at > stackDistance+2*frameSize+64+0x1000 {
			t.Fatalf("RSP %#x: frame at %#x", rsp, at)
		}
	}
	for name, off := range map[string]int{"OBJECT_ATTRIBUTES": frameAttributes, "CLIENT_ID": frameClientID, "handle": frameHandle} {
		if (8+off)%8 != 0 || off < 0x28 || off+8 > frameSize {
			t.Errorf("%s at %#x of the frame", name, off)
		}
	}
	if frameAttributes+0x30 > frameClientID || frameClientID+0x10 > frameHandle {
		t.Error("parts of the frame overlap")
	}
}
