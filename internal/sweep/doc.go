// Package sweep holds what sweeps know of one another. A sweep scans one guest after the
// other. The package tells that a sweep is under way (Turn), and what an interrupted sweep
// has done (Checkpoint). Both are files. The package scans nothing.
package sweep
