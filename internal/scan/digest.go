package scan

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/minio/highwayhash"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
)

// pageDigest is a keyed digest of one page's content. The key stays on this host. Without
// it, a guest cannot choose two pages with the same digest.
type pageDigest [16]byte

// digestBatch is how many pages are read and digested at once. They fit into the
// processor's cache.
const digestBatch = 64

// digester reads and digests pages of a guest. It is for one goroutine.
type digester struct {
	guest  *introspect.Guest
	secret []byte

	mem   []byte
	batch []introspect.Frame
	index []int
	text  []byte
}

// newDigester returns a digester whose digests can be compared with what r recalls.
func newDigester(g *introspect.Guest, r Results) *digester {
	secret := r.Secret()
	return &digester{guest: g, secret: secret[:]}
}

func (d *digester) page(p []byte) pageDigest { return highwayhash.Sum128(p, d.secret) }

// errHole says that a page that was found is not backed by RAM.
var errHole = errors.New("a page is behind no RAM")

// frames digests the pages that are in memory, except those for which skip returns true.
// skip may be nil. The digests go to out, which has room for all pages.
func (d *digester) frames(ctx context.Context, frames []introspect.Frame, skip func(i int) bool, out []pageDigest) error {
	if d.mem == nil {
		d.mem = make([]byte, digestBatch*pe.PageSize)
	}
	flush := func() error {
		if err := d.guest.ReadFrames(ctx, d.mem, d.batch); err != nil {
			return err
		}
		for k, i := range d.index {
			if !d.batch[k].InMemory() {
				return errHole
			}
			out[i] = d.page(d.mem[k*pe.PageSize : (k+1)*pe.PageSize])
		}
		d.batch, d.index = d.batch[:0], d.index[:0]
		return nil
	}
	d.batch, d.index = d.batch[:0], d.index[:0]
	for i := range frames {
		if !frames[i].InMemory() || skip != nil && skip(i) {
			continue
		}
		if d.batch, d.index = append(d.batch, frames[i]), append(d.index, i); len(d.batch) == digestBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// file digests what is cached of a file of size bytes.
func (d *digester) file(size uint64, frames []introspect.Frame, page func(i int) pageDigest) pageDigest {
	d.begin("file")
	d.number(size)
	for i := range frames {
		d.flag(frames[i].InMemory())
		if frames[i].InMemory() {
			d.digest(page(i))
		}
	}
	return highwayhash.Sum128(d.text, d.secret)
}

// begin starts the text of a digest over digests.
func (d *digester) begin(kind string) {
	d.text = append(append(d.text[:0], kind...), 0)
}

func (d *digester) number(n uint64)     { d.text = binary.LittleEndian.AppendUint64(d.text, n) }
func (d *digester) digest(p pageDigest) { d.text = append(d.text, p[:]...) }

func (d *digester) string(s string) {
	d.number(uint64(len(s)))
	d.text = append(d.text, s...)
}

func (d *digester) flag(b bool) {
	n := byte(0)
	if b {
		n = 1
	}
	d.text = append(d.text, n)
}

// sum returns the digest of the text.
func (d *digester) sum() [32]byte { return highwayhash.Sum(d.text, d.secret) }

// digest digests the section's pages, once in a scan for all processes that map it.
func (s *section) digest(ctx context.Context, d *digester) ([]pageDigest, error) {
	s.digested.Do(func() {
		s.digests = make([]pageDigest, len(s.frames))
		s.digestErr = d.frames(ctx, s.frames, nil, s.digests)
	})
	return s.digests, s.digestErr
}

// digest digests what is cached of a file, once in a scan.
func (c *cachedFile) digest(ctx context.Context, d *digester) (pageDigest, error) {
	if c == nil {
		return pageDigest{}, nil
	}
	c.digested.Do(func() {
		out := make([]pageDigest, len(c.frames))
		if c.digestErr = d.frames(ctx, c.frames, nil, out); c.digestErr == nil {
			c.sum = d.file(c.size, c.frames, func(i int) pageDigest { return out[i] })
		}
	})
	return c.sum, c.digestErr
}
