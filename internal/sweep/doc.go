// Package sweep is what sweeps, which scan one guest after the other, know of one another:
// that one is under way (Alone), and what one that was interrupted has done (Checkpoint). Both
// are files. The package scans nothing.
package sweep
