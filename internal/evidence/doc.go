// Package evidence stores what findings were found in: rebuilt files, memory, fidelity
// records. It is a directory of sealed items, each named by the SHA-256 of its content, so
// that equal contents are stored once.
//
// An item is made so that nobody runs it and no scanner of the host finds the malware in
// it: it is compressed and enciphered. The key is in the item itself; this keeps nothing
// secret, and is not meant to. Whoever can read the store can extract. Directories have
// mode 0700, items 0400.
//
// # Form of an item
//
// All integers are little-endian. Sizes are in bytes.
//
//	offset  size
//	0       8     magic "VMAVSEAL"
//	8       4     version, 1
//	12      4     H, size of the header, at most 64 KiB
//	16      8     C, size of the enciphered content
//	24      32    key, random, of this item alone
//	56      H     header: a JSON object, see Header
//	56+H    C     content: Zstandard, then AES-256 in counter mode, first counter block 0
//	56+H+C  32    SHA-256 of all before
//
// A reader accepts an item only if the last sum is right and the content has the size and
// the SHA-256 that the header says.
//
// # Limits
//
// A store has a size and an age (Limits). What is too old is removed by Prune, which Put
// calls where there is no room; what does not fit then is refused with ErrFull, and never
// pushes out what is younger: else a guest that makes findings could have the evidence of
// earlier ones removed.
//
// The package knows nothing of guests and imports no other package of the project.
package evidence
