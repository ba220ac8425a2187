package cache

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"sync"
)

// Program identifies the running program: another build of it might find other things than
// this one remembers. The identity is the build id that the linker wrote, or else a digest
// of the whole file.
var Program = sync.OnceValues(func() (string, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("identify this program: %w", err)
	}
	defer f.Close()
	if id := buildID(f); id != "" {
		return id, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("identify this program: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
})

// buildID reads the note that Go's linker writes; its name is "Go" and its type 4
// (cmd/internal/buildid). The last part of it is a digest of the program itself.
func buildID(r io.ReaderAt) string {
	f, err := elf.NewFile(r)
	if err != nil {
		return ""
	}
	s := f.Section(".note.go.buildid")
	if s == nil || s.Size > 1<<12 {
		return ""
	}
	note, err := s.Data()
	if err != nil || len(note) < 16 || !bytes.Equal(note[12:16], []byte("Go\x00\x00")) {
		return ""
	}
	size := binary.LittleEndian.Uint32(note[4:])
	if binary.LittleEndian.Uint32(note[8:]) != 4 || uint64(size) > uint64(len(note)-16) {
		return ""
	}
	return string(note[16 : 16+size])
}
