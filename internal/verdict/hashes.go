package verdict

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// Hashes is a set of SHA-256 sums.
type Hashes map[[32]byte]struct{}

// MaxHashes bounds a set.
const MaxHashes = 1 << 20

// ParseHash reads a SHA-256 in hexadecimal.
func ParseHash(s string) (sum [32]byte, err error) {
	if len(s) != 64 {
		return sum, fmt.Errorf("%.80q is no SHA-256 in hexadecimal: it has %d characters, not 64", s, len(s))
	}
	if _, err := hex.Decode(sum[:], []byte(s)); err != nil {
		return [32]byte{}, fmt.Errorf("%q is no SHA-256 in hexadecimal", s)
	}
	return sum, nil
}

// ParseHashes adds the sums of a list to h. A line has one sum, alone or as sha256sum
// writes it. # begins a comment. The error names the line.
func (h Hashes) ParseHashes(text string) error {
	n := 0
	for _, line := range strings.Split(text, "\n") {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		sum, err := ParseHash(words[0])
		if err == nil && len(h) >= MaxHashes {
			err = fmt.Errorf("more than %d hashes", MaxHashes)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		h[sum] = struct{}{}
	}
	return nil
}

// has returns the hash of a finding that is in the set. It is "" if none is.
func (h Hashes) has(f Finding) string {
	for _, s := range []string{f.SHA256, f.Cached} {
		if sum, err := ParseHash(s); err == nil {
			if _, ok := h[sum]; ok {
				return s
			}
		}
	}
	return ""
}

// Allow names what is only reported, whatever the rules say.
type Allow struct {
	Hashes Hashes // of rebuilt files, of files in the guest's cache, or of memory
	Paths  []Glob // of the files of images
}

// match tells whether the allowlists allow a finding, and why or why not. A hash allows
// the bytes that were scanned, and a path allows a file. Neither allows what a process
// has changed in memory, and a path does not allow memory that is in no file.
func (a Allow) match(f Finding) (string, bool) {
	switch {
	case len(a.Hashes) == 0 && len(a.Paths) == 0:
		return "there are no allowlists", false
	case f.Kind == KindModified:
		return "allowlists do not speak for memory that was changed", false
	}
	if sum := a.Hashes.has(f); sum != "" {
		return "its SHA-256 is allowed: " + sum, true
	}
	if !f.Memory {
		for _, g := range a.Paths {
			if g.Match(f.Image) {
				return fmt.Sprintf("its path is allowed by %q", g), true
			}
		}
	}
	return "neither its hash nor its path is allowed", false
}
