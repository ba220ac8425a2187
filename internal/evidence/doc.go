// Package evidence stores what findings were found in: rebuilt files, memory, fidelity
// records. The store is a directory of sealed items. The SHA-256 of its content names an
// item, so equal contents are stored once.
//
// An item is compressed and enciphered, so that nobody runs it and no scanner of the
// host finds the malware in it. The key is in the item itself: the content is not
// secret, and need not be. Whoever can read the store can extract from it. Directories
// have mode 0700, items 0400.
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
// A store has a limit of size and one of age (Limits). Prune removes items that are too
// old, and Put calls it if there is no room. If an item does not fit then, Put refuses
// it with ErrFull. It never removes younger items: otherwise a guest that causes
// findings could remove the evidence of earlier ones.
//
// The package knows nothing of guests. It imports nothing of the project but atomicfile.
package evidence
