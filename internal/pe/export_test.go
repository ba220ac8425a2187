package pe

// OrdinalName is the name that import hashes have for an ordinal of a library.
func OrdinalName(library string, ordinal uint16) string {
	return ordinalNames[trimModule(library)][ordinal]
}

// Sum is the number of bytes that the first group of b accounts for: the size of the file.
func (b ByteCounts) Sum() uint64 {
	return b.Resident + b.Transition + b.Prototype + b.Private + b.DemandZero + b.FileCache + b.Other +
		b.PagedIn + b.Derived + b.Assumed + b.Missing + b.Overlay
}

// Supports is the prediction for a kind of signature.
func (f *Fidelity) Supports(k SignatureKind) Support {
	for _, s := range f.Signatures {
		if s.Kind == k {
			return s.Support
		}
	}
	return SupportNo
}
