package introspect

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"vmav.dev/vmav/internal/winstruct"
)

// kernelPDBs are the PDB names of the kernel's variants: for one and for several
// processors, with and without PAE, and with 5-level paging.
var kernelPDBs = map[string]bool{"ntkrnlmp.pdb": true, "ntoskrnl.pdb": true, "ntkrnlpa.pdb": true, "ntkrpamp.pdb": true, "ntkrla57.pdb": true}

const (
	maxKernelSize = 64 << 20 // bytes; a larger SizeOfImage is not believed
	maxPDBName    = 64
)

// identifyKernel reads the image at base and returns its identity and its size in bytes if
// it is a Windows kernel: a PE image whose export directory calls it ntoskrnl.exe and whose
// CodeView record names a kernel's PDB (Microsoft, "PE Format"). For anything else the
// error says what does not fit.
func identifyKernel(as *AddressSpace, base uint64) (winstruct.Identity, uint32, error) {
	var none winstruct.Identity
	h, err := readPEHeader(as, base)
	if err != nil {
		return none, 0, err
	}
	if h.size < 0x100000 || h.size > maxKernelSize {
		return none, 0, fmt.Errorf("image at %#x has a size of %#x bytes", base, h.size)
	}
	export, err := readExportDirectory(h)
	if err != nil {
		return none, 0, err
	}
	var name [13]byte
	if err := h.read(name[:], uint64(export.u32(12))); err != nil {
		return none, 0, err
	}
	if string(name[:]) != "ntoskrnl.exe\x00" {
		return none, 0, fmt.Errorf("image at %#x is not ntoskrnl.exe", base)
	}
	debug, n, ok := h.directory(dirDebug, 28)
	if !ok {
		return none, 0, fmt.Errorf("kernel image at %#x has no debug directory", base)
	}
	for i := range min(n/28, 16) {
		entry := as.newRecord(28)
		if err := h.read(entry.b, uint64(debug+28*i)); err != nil {
			return none, 0, err
		}
		rva := entry.u32(20)
		if entry.u32(12) != 2 || rva == 0 { // IMAGE_DEBUG_TYPE_CODEVIEW
			continue
		}
		text := make([]byte, min(entry.u32(16), 24+maxPDBName))
		if err := h.read(text, uint64(rva)); err != nil {
			return none, 0, err
		}
		if id, ok := parseRSDS(text); ok && kernelPDBs[id.PDB] {
			return id, h.size, nil
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
