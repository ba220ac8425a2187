// Package atomicfile writes files that appear whole or not at all.
//
// A file is written under a hidden name of its own, goes to the disk, and only then gets
// its name. Whoever opens the name sees the old file or the new one, also after a crash of
// the host. An error names the file that was to be written, not the hidden one, and leaves
// nothing behind. A file that a crash leaves behind is called "." + name + digits.
//
// The package is a thin layer over renameio, which does not sync the directory. It imports
// no other package of the project.
package atomicfile
