package introspect

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"vmav.dev/vmav/internal/winstruct"
)

// kernelPDBs are the names that a kernel's debug record may carry: one and several
// processors, with and without PAE, and with 5-level paging.
var kernelPDBs = map[string]bool{"ntkrnlmp.pdb": true, "ntoskrnl.pdb": true, "ntkrnlpa.pdb": true, "ntkrpamp.pdb": true, "ntkrla57.pdb": true}

const (
	maxKernelSize = 64 << 20 // bytes of SizeOfImage that are believed
	maxPDBName    = 64
)

// identifyKernel reads the image at base and returns its identity and size if it is
// a Windows kernel: a PE image whose export directory calls it ntoskrnl.exe and
// whose CodeView record names a kernel's PDB (Microsoft, "PE Format"). Anything else
// is an error that says what did not fit.
func identifyKernel(as *AddressSpace, base uint64) (winstruct.Identity, uint32, error) {
	var none winstruct.Identity
	var head [pageSize]byte
	if err := as.Read(head[:], base); err != nil {
		return none, 0, err
	}
	le := binary.LittleEndian
	if head[0] != 'M' || head[1] != 'Z' {
		return none, 0, fmt.Errorf("no image at %#x", base)
	}
	pe := uint64(le.Uint32(head[0x3c:]))
	if pe > pageSize-0x108-8 || !bytes.Equal(head[pe:pe+4], []byte("PE\x00\x00")) {
		return none, 0, fmt.Errorf("image at %#x has no PE header", base)
	}
	opt := pe + 24
	dirs := opt + 112
	switch le.Uint16(head[opt:]) {
	case 0x20b:
	case 0x10b:
		dirs = opt + 96
	default:
		return none, 0, fmt.Errorf("image at %#x has no optional header", base)
	}
	size := le.Uint32(head[opt+56:])
	if size < 0x100000 || size > maxKernelSize {
		return none, 0, fmt.Errorf("image at %#x has a size of %#x bytes", base, size)
	}
	at := func(dir uint64, need uint32) (uint64, uint32, bool) {
		if dirs+8*dir+8 > pageSize {
			return 0, 0, false
		}
		rva, n := le.Uint32(head[dirs+8*dir:]), le.Uint32(head[dirs+8*dir+4:])
		if rva == 0 || n < need || rva >= size || uint64(rva)+uint64(n) > uint64(size) {
			return 0, 0, false
		}
		return base + uint64(rva), n, true
	}
	export, _, ok := at(0, 40)
	if !ok {
		return none, 0, fmt.Errorf("image at %#x exports nothing", base)
	}
	var dir [40]byte
	if err := as.Read(dir[:], export); err != nil {
		return none, 0, err
	}
	var name [13]byte
	if err := as.Read(name[:], base+uint64(le.Uint32(dir[12:]))%uint64(size)); err != nil {
		return none, 0, err
	}
	if string(name[:]) != "ntoskrnl.exe\x00" {
		return none, 0, fmt.Errorf("image at %#x is not ntoskrnl.exe", base)
	}
	debug, n, ok := at(6, 28)
	if !ok {
		return none, 0, fmt.Errorf("kernel image at %#x has no debug directory", base)
	}
	for i := uint32(0); i < min(n/28, 16); i++ {
		var entry [28]byte
		if err := as.Read(entry[:], debug+uint64(28*i)); err != nil {
			return none, 0, err
		}
		rva := le.Uint32(entry[20:])
		if le.Uint32(entry[12:]) != 2 || rva == 0 || rva >= size { // IMAGE_DEBUG_TYPE_CODEVIEW
			continue
		}
		record := make([]byte, min(le.Uint32(entry[16:]), 24+maxPDBName))
		if err := as.Read(record, base+uint64(rva)); err != nil {
			return none, 0, err
		}
		if id, ok := parseRSDS(record); ok && kernelPDBs[id.PDB] {
			return id, size, nil
		}
	}
	return none, 0, fmt.Errorf("kernel image at %#x has no debug record that names a kernel", base)
}

// parseRSDS decodes a CodeView 7.0 record: signature, GUID, age, path of the PDB.
func parseRSDS(record []byte) (winstruct.Identity, bool) {
	if len(record) < 25 || string(record[:4]) != "RSDS" {
		return winstruct.Identity{}, false
	}
	g := record[4:20]
	guid := []byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}
	name, _, ok := bytes.Cut(record[24:], []byte{0})
	if !ok {
		return winstruct.Identity{}, false
	}
	pdb := strings.ToLower(string(name))
	pdb = pdb[strings.LastIndexAny(pdb, `\/`)+1:]
	return winstruct.Identity{PDB: pdb, GUID: strings.ToUpper(hex.EncodeToString(guid)), Age: binary.LittleEndian.Uint32(record[20:])}, true
}
