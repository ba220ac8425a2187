package pe

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"slices"
	"strconv"
	"strings"
)

// SectionHash has the MD5 and the size of a section's raw data, which are what section
// signatures look for.
type SectionHash struct {
	Name string `json:"name"`
	Size uint64 `json:"size"` // bytes
	MD5  string `json:"md5"`  // hexadecimal
}

// Hashes identify a file. All are in hexadecimal; one that could not be computed is empty.
type Hashes struct {
	SHA256       string        `json:"sha256"`
	ImportHash   string        `json:"imphash,omitempty"`
	Authenticode string        `json:"authenticode_sha256,omitempty"`
	Sections     []SectionHash `json:"sections,omitempty"`
}

// Hash computes the hashes of a rebuilt file.
func Hash(f *File) Hashes {
	sum := sha256.Sum256(f.Data)
	h := Hashes{
		SHA256:       hex.EncodeToString(sum[:]),
		ImportHash:   ImportHash(f.Data, f.Headers),
		Authenticode: Authenticode(f.Data, f.Headers),
	}
	budget := 2 * len(f.Data) // overlapping sections cost no more than honest ones
	for i := range f.Headers.Sections {
		s := &f.Headers.Sections[i]
		from := min(uint64(s.RawOffset), uint64(len(f.Data)))
		to := min(from+uint64(s.RawSize), uint64(len(f.Data)))
		if from == to || s.RawOffset == 0 {
			continue
		}
		if budget -= int(to - from); budget < 0 {
			break
		}
		sum := md5.Sum(f.Data[from:to])
		h.Sections = append(h.Sections, SectionHash{s.Name, to - from, hex.EncodeToString(sum[:])})
	}
	return h
}

// Authenticode returns the SHA-256 digest that a signature of the file covers: everything
// except the CheckSum field, the certificate directory entry and the certificates
// (Microsoft, "Windows Authenticode Portable Executable Signature Format"). For an unsigned
// or rebuilt file it is the digest of the file as it is: the sections in their order in the
// file, then what follows them.
func Authenticode(file []byte, h *Headers) string {
	return hex.EncodeToString(authenticode(sha256.New(), file, h))
}

func authenticode(d hash.Hash, file []byte, h *Headers) []byte {
	size := uint64(len(file))
	end := size
	if c := h.Dirs[dirSecurity]; h.NumDirs > dirSecurity && c.Size != 0 && c.RVA != 0 {
		end = min(size, uint64(c.RVA))
	}
	pos := uint64(0)
	skip := func(at, n uint64) {
		if at >= pos && at+n <= end {
			d.Write(file[pos:at])
			pos = at + n
		}
	}
	skip(uint64(h.checkSumField()), 4)
	if h.NumDirs > dirSecurity {
		skip(uint64(h.dirEntry(dirSecurity)), 8)
	}
	if pos < end {
		d.Write(file[pos:end])
	}
	// A signer pads the file to a multiple of 8 before it hashes it.
	if n := end % 8; n != 0 {
		d.Write(make([]byte, 8-n))
	}
	return d.Sum(nil)
}

// ImportHash is the MD5 of the names of all imports in order: "module.name" in lower case,
// without the module's extension, joined by commas. It is "" for a file without imports.
// For an import by ordinal the name in ordinalNames counts if the library is one of those,
// or else "ord" and the number. This is the hash that pefile and other tools compute.
func ImportHash(file []byte, h *Headers) string {
	le := binary.LittleEndian
	at, ok := fileOffset(h, h.Dirs[dirImport].RVA, len(file))
	if !ok || h.NumDirs <= dirImport {
		return ""
	}
	d := md5.New()
	first := true
	ps := h.ptrSize()
	budget := len(file) / ps
	for n := 0; n < maxImportModules && at+importDescriptorSize <= len(file); n, at = n+1, at+importDescriptorSize {
		b := file[at:]
		names, module, addrs := le.Uint32(b), le.Uint32(b[12:]), le.Uint32(b[16:])
		if module == 0 || addrs == 0 {
			break
		}
		if names == 0 {
			names = addrs
		}
		lib, ok := fileString(file, h, module)
		if !ok {
			continue
		}
		lib = trimModule(lib)
		pos, ok := fileOffset(h, names, len(file))
		for ; ok && pos+ps <= len(file) && budget > 0; pos, budget = pos+ps, budget-1 {
			v := getUint(file[pos : pos+ps])
			if v == 0 {
				break
			}
			name := ""
			if v>>(8*ps-1) != 0 {
				if name = ordinalNames[lib][uint16(v)]; name == "" {
					name = "ord" + strconv.Itoa(int(uint16(v)))
				}
			} else if name, ok = fileString(file, h, uint32(v)+2); !ok {
				break
			}
			if !first {
				d.Write([]byte{','})
			}
			first = false
			d.Write([]byte(lib + "." + strings.ToLower(name)))
		}
	}
	if first {
		return ""
	}
	return hex.EncodeToString(d.Sum(nil))
}

// trimModule returns a module's name in lower case, without the extensions that the import
// hash leaves out.
func trimModule(name string) string {
	name = strings.ToLower(name)
	for _, ext := range []string{".dll", ".ocx", ".sys"} {
		if strings.HasSuffix(name, ext) {
			return strings.TrimSuffix(name, ext)
		}
	}
	return name
}

// fileOffset maps an RVA to an offset in a file of size bytes by the section table.
func fileOffset(h *Headers, rva uint32, size int) (int, bool) {
	i := slices.IndexFunc(h.Sections, func(s Section) bool {
		return rva >= s.VirtualAddress && rva-s.VirtualAddress < max(s.RawSize, 1) && s.RawOffset != 0
	})
	off := uint64(rva)
	if i >= 0 {
		s := &h.Sections[i]
		off = uint64(s.RawOffset)&^(sectorSize-1) + uint64(rva-s.VirtualAddress)
	} else if rva >= h.SizeOfHeaders && !h.lowAlignment() {
		return 0, false
	}
	return int(off), off < uint64(size)
}

// fileString reads a zero-terminated string of at most 512 bytes.
func fileString(file []byte, h *Headers, rva uint32) (string, bool) {
	off, ok := fileOffset(h, rva, len(file))
	if !ok {
		return "", false
	}
	b := file[off:min(len(file), off+512)]
	n := slices.Index(b, 0)
	return string(b[:max(n, 0)]), n > 0
}
