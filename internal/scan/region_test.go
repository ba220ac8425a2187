package scan

import (
	"testing"

	"vmav.dev/vmav/internal/introspect"
)

// Memory is named after its process, and that of a driver after the kernel, which is none.
func TestMemoryIsNamed(t *testing.T) {
	rec := &memoryRecord{Start: 0x1000, End: 0x3000}
	if got, want := memoryName(nil, rec), "the kernel, memory 0x1000-0x3000"; got != want {
		t.Errorf("memory of the kernel: %q, want %q", got, want)
	}
	if got, want := memoryName(&introspect.Process{PID: 8, Name: "a.exe"}, rec), "process 8 (a.exe), memory 0x1000-0x3000"; got != want {
		t.Errorf("memory of a process: %q, want %q", got, want)
	}
}
