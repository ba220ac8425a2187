package pe

// OrdinalName is the name that import hashes have for an ordinal of a library.
func OrdinalName(library string, ordinal uint16) string {
	return ordinalNames[trimModule(library)][ordinal]
}
