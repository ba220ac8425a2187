package evidence

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	magic       = "VMAVSEAL"
	version     = 1
	prefixSize  = 56
	keyOffset   = 24
	maxHeader   = 64 << 10
	maxText     = 4096    // of one field of a header, in bytes
	maxWindow   = 8 << 20 // of Zstandard, in bytes: what a reader holds in memory
	trailerSize = sha256.Size
)

// MaxContent bounds the content of one item, in bytes.
const MaxContent = 1 << 30

// ErrFormat reports a file that is not a whole item.
var ErrFormat = errors.New("not a whole sealed item")

// Header says what an item is. Its text can come from the guest.
type Header struct {
	SHA256    string    `json:"sha256"` // of the content, in hexadecimal
	Size      uint64    `json:"size"`   // of the content, in bytes
	Kind      string    `json:"kind"`
	Stored    time.Time `json:"stored"`
	Domain    string    `json:"domain,omitempty"`    // where it was found first
	Image     string    `json:"image,omitempty"`     // that the content is of
	Signature string    `json:"signature,omitempty"` // of the finding that it was first stored for
}

// sealItem writes content as an item, but for the sum at the end (trail).
func sealItem(w io.WriteSeeker, h Header, content []byte) error {
	h.Domain, h.Image, h.Signature, h.Kind = clip(h.Domain), clip(h.Image), clip(h.Signature), clip(h.Kind)
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	prefix := make([]byte, prefixSize, prefixSize+len(head))
	copy(prefix, magic)
	binary.LittleEndian.PutUint32(prefix[8:], version)
	binary.LittleEndian.PutUint32(prefix[12:], uint32(len(head)))
	if _, err := rand.Read(prefix[keyOffset:prefixSize]); err != nil {
		return err
	}
	// The size of the content is known only when it is compressed. It is filled in
	// then, and the sum at the end is of the finished file.
	if _, err := w.Write(append(prefix, head...)); err != nil {
		return err
	}
	count := &counter{w: w}
	enc, err := zstd.NewWriter(cipher.StreamWriter{S: stream(prefix[keyOffset:prefixSize]), W: count},
		zstd.WithWindowSize(maxWindow), zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return err
	}
	_, err = enc.Write(content)
	if cerr := enc.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if _, err := w.Seek(16, io.SeekStart); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(prefix[16:], count.n)
	_, err = w.Write(prefix[16:keyOffset])
	return err
}

// trail adds the sum of everything in a file to its end.
func trail(f io.ReadWriteSeeker) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	_, err := f.Write(h.Sum(nil))
	return err
}

type counter struct {
	w io.Writer
	n uint64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += uint64(n)
	return n, err
}

// stream is the cipher of an item's content.
func stream(key []byte) cipher.Stream {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // impossible: the key has 32 bytes
	}
	return cipher.NewCTR(block, make([]byte, aes.BlockSize))
}

func clip(s string) string {
	if len(s) > maxText {
		return s[:maxText]
	}
	return s
}

// preamble is what comes before the content.
type preamble struct {
	header  Header
	key     []byte
	offset  int64 // of the content
	content int64 // size of the enciphered content
}

// readPreamble reads and checks everything before the content. size is that of the
// item's file.
func readPreamble(r io.ReaderAt, size int64) (p preamble, err error) {
	bad := func(format string, args ...any) (preamble, error) {
		return preamble{}, fmt.Errorf("%w: "+format, append([]any{ErrFormat}, args...)...)
	}
	var b [prefixSize]byte
	if size < prefixSize+trailerSize {
		return bad("it has %d bytes", size)
	}
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return bad("%w", err)
	}
	if string(b[:8]) != magic {
		return bad("it does not begin as one")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return bad("its version is %d; known is %d", v, version)
	}
	head, content := int64(binary.LittleEndian.Uint32(b[12:])), binary.LittleEndian.Uint64(b[16:])
	if head > maxHeader || content > uint64(size) || prefixSize+head+int64(content)+trailerSize != size {
		return bad("a header of %d and a content of %d bytes do not make %d", head, content, size)
	}
	text := make([]byte, head)
	if _, err := r.ReadAt(text, prefixSize); err != nil {
		return bad("%w", err)
	}
	if err := json.Unmarshal(text, &p.header); err != nil {
		return bad("its header: %w", err)
	}
	if sum, err := hex.DecodeString(p.header.SHA256); err != nil || len(sum) != sha256.Size || p.header.Size > MaxContent {
		return bad("its header is of %d bytes with the SHA-256 %q", p.header.Size, clip(p.header.SHA256))
	}
	p.key, p.offset, p.content = b[keyOffset:], prefixSize+head, int64(content)
	return p, nil
}

// openItem checks an item and writes its content to w. What was written is the content
// only if the error is nil. size is that of the item's file.
func openItem(r io.ReaderAt, size int64, w io.Writer) (Header, error) {
	p, err := readPreamble(r, size)
	if err != nil {
		return Header{}, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(r, 0, size-trailerSize)); err != nil {
		return Header{}, err
	}
	if err := same(sum, r, size-trailerSize); err != nil {
		return Header{}, err
	}
	dec, err := zstd.NewReader(cipher.StreamReader{S: stream(p.key), R: io.NewSectionReader(r, p.offset, p.content)},
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return Header{}, err
	}
	defer dec.Close()
	sum.Reset()
	// Reading one byte more than there should be shows whether there is more.
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(dec, int64(p.header.Size)+1))
	if err != nil {
		return Header{}, fmt.Errorf("%w: its content: %w", ErrFormat, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); uint64(n) != p.header.Size || got != p.header.SHA256 {
		return Header{}, fmt.Errorf("%w: its content is not of the size and SHA-256 that its header says", ErrFormat)
	}
	return p.header, nil
}

// same compares a sum with the one at an offset.
func same(h hash.Hash, r io.ReaderAt, at int64) error {
	var want [trailerSize]byte
	if _, err := r.ReadAt(want[:], at); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("%w: its bytes are not those that were written", ErrFormat)
	}
	return nil
}
