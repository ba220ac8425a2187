package introspect

import "vmav.dev/vmav/internal/winstruct"

// Needed returns the names of all facts that introspection asks a profile for, for a pack
// of kernels: a profile with only these reads a guest as a whole one does.
func Needed() []string { return winstruct.FactsOf(Offsets{}, neededSymbols...) }

// IsKernel reports whether a PDB's name is one of a Windows kernel's.
func IsKernel(pdb string) bool { return kernelPDBs[pdb] }
