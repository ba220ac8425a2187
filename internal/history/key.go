package history

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"vmav.dev/vmav/internal/atomicfile"
)

// keySize is the length of the chain's key in bytes.
const keySize = 32

// loadKey reads the key of the chain, or makes one for a new database. The caller holds
// the lock.
func loadKey(path string, fresh bool) ([]byte, error) {
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if !fresh {
		return nil, fmt.Errorf("the key %s is gone: what is recorded cannot be verified any more, and nothing is added; "+
			"move the database away to begin a new one", path)
	}
	key = make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	return key, writeKey(path, key)
}

func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the key %s has mode %04o: others could forge the log with it; give it 0600", path, st.Mode().Perm())
	}
	key := make([]byte, keySize+1)
	if n, _ := f.Read(key); n != keySize {
		return nil, fmt.Errorf("the key %s is not of %d bytes", path, keySize)
	}
	return key[:keySize], nil
}

// writeKey writes the key to the disk. This comes before anything is recorded with it.
func writeKey(path string, key []byte) error {
	if err := atomicfile.WriteBytes(path, 0o600, key); err != nil {
		return fmt.Errorf("make the key: %w", err)
	}
	return nil
}
