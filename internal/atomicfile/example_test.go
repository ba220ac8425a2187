package atomicfile_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"vmav.dev/vmav/internal/atomicfile"
)

// Where a file cannot be written whole, the old one stays, and nothing else is left.
func ExampleWrite() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "state")
	if err := atomicfile.WriteBytes(path, 0o600, []byte("old")); err != nil {
		log.Fatal(err)
	}
	err = atomicfile.Write(path, 0o600, func(w io.Writer) error {
		_, err := io.WriteString(w, "ne")
		return errors.Join(err, errors.New("interrupted"))
	})
	content, rerr := os.ReadFile(path)
	files, derr := os.ReadDir(dir)
	fmt.Println(err != nil, string(content), len(files), errors.Join(rerr, derr))
	// Output:
	// true old 1 <nil>
}
