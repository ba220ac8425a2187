package pe

import "encoding/binary"

// Kinds of records of an ARM64X table (IMAGE_DVRT_ARM64X_FIXUP_TYPE_* of winnt.h).
const (
	arm64xZero  = 0 // bytes that become zeros
	arm64xValue = 1 // bytes that become those of the record
	arm64xDelta = 2 // a 32-bit word to which a multiple of 4 or 8 is added
)

// arm64xRecord is one record: what is done to the bytes at an RVA.
type arm64xRecord struct {
	rva, size uint64
	kind      uint16
	value     []byte // of arm64xValue
	delta     uint32
}

// undoARM64X undoes what makes an x64 image of an ARM64 one: a file can be both, and the
// memory manager applies these records to its mapping, headers included, for processes of
// the other kind. Sums are undone; what was overwritten is lost, and recorded as such,
// but for the machine in the header. That they were applied at all shows by the latter.
func (r *Rebuilder) undoARM64X(w *relocWalker) {
	machine := uint64(r.hdr.ntOffset) + 4
	var records []arm64xRecord
	applied := false
	for {
		blk, ok := w.next()
		if !ok {
			break
		}
		for e := blk.entries; len(e) >= 2; {
			var rec arm64xRecord
			if rec, e, ok = nextARM64X(blk.page, e); !ok || len(records) == 1<<16 {
				break
			}
			records = append(records, rec)
			if rec.kind == arm64xValue && rec.rva == machine && rec.size == 2 {
				applied = binary.LittleEndian.Uint16(rec.value) == r.hdr.Machine
			}
		}
	}
	if !applied {
		return
	}
	le := binary.LittleEndian
	for i := range records {
		rec := &records[i]
		if !r.img.present(rec.rva, rec.size) {
			continue
		}
		switch {
		case rec.kind == arm64xDelta:
			r.putDoubtful(rec.rva, le.AppendUint32(nil, le.Uint32(r.img.Mem[rec.rva:])-rec.delta))
		case rec.rva == machine && rec.size == 2:
			r.putDoubtful(rec.rva, le.AppendUint16(nil, machineARM64))
		default:
			if off, in := r.lay.offset(rec.rva, rec.size); in {
				r.unknown(off, off+rec.size, CauseDynamic)
			}
		}
	}
}

// nextARM64X decodes one record and returns the entries behind it.
func nextARM64X(page uint64, e []byte) (rec arm64xRecord, rest []byte, ok bool) {
	le := binary.LittleEndian
	v := le.Uint16(e)
	rec.rva, rec.kind, e = page+uint64(v&0xfff), v>>12&3, e[2:]
	size := v >> 14
	switch rec.kind {
	case arm64xZero:
		rec.size = 1 << size
	case arm64xValue:
		if rec.size = 1 << size; uint64(len(e)) < alignUp(rec.size, 2) {
			return rec, nil, false
		}
		rec.value, e = e[:rec.size], e[alignUp(rec.size, 2):]
	case arm64xDelta:
		if len(e) < 2 {
			return rec, nil, false
		}
		rec.size, rec.delta = 4, 4*uint32(le.Uint16(e))
		if size&2 != 0 {
			rec.delta *= 2
		}
		if size&1 != 0 {
			rec.delta = -rec.delta
		}
		e = e[2:]
	default:
		return rec, nil, false
	}
	return rec, e, true
}
