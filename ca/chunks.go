package ca

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"iter"
	"math/rand/v2"
	"slices"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// chunkOctets is about how many octets of entries one chunk has: a revocation writes the
// last one anew, and a list of a million entries has some 180.
const chunkOctets = 256 << 10

// chunk is a part of the entries of a list, encoded. It is never changed.
type chunk struct {
	id  int64
	n   int // entries
	der []byte
}

// content is what a list consists of: what is before its entries, the entries, and what
// is behind them. Lists share the chunks that did not change between them.
type content struct {
	head, tail []byte
	chunks     []*chunk
}

func (c *content) entries() (n int, octets int64) {
	for _, k := range c.chunks {
		n += k.n
		octets += int64(len(k.der))
	}
	return n, octets
}

func (c *content) size() int64 {
	_, octets := c.entries()
	return int64(len(c.head)) + octets + int64(len(c.tail))
}

// parts yields the octets of the list in their order.
func (c *content) parts(yield func([]byte) bool) {
	if !yield(c.head) {
		return
	}
	for _, k := range c.chunks {
		if !yield(k.der) {
			return
		}
	}
	yield(c.tail)
}

func (c *content) bytes() []byte { return bytes.Join(slices.Collect(c.parts), nil) }

func (c *content) ReadAt(p []byte, at int64) (n int, err error) {
	for part := range c.parts {
		if at >= int64(len(part)) {
			at -= int64(len(part))
			continue
		}
		n += copy(p[n:], part[at:])
		if at = 0; n == len(p) {
			return n, nil
		}
	}
	return n, io.EOF
}

// manifest is the ids of the chunks as the record of a list has them.
func (c *content) manifest() []byte {
	b := make([]byte, 0, 8*len(c.chunks))
	for _, k := range c.chunks {
		b = binary.BigEndian.AppendUint64(b, uint64(k.id)) //nolint:gosec // the bits
	}
	return b
}

func chunkIDs(manifest []byte) (ids []int64) {
	for ; len(manifest) >= 8; manifest = manifest[8:] {
		ids = append(ids, int64(binary.BigEndian.Uint64(manifest))) //nolint:gosec // the bits
	}
	return ids
}

// readChunks reads the entries of a recorded list into c. Chunks of known, each of which
// may be nil, are not read again. It returns errListMoved where another list was recorded
// between the record and its chunks, or one is damaged.
func (c *content) readChunks(ctx context.Context, r store.Reader, ids []int64, known []*content) error {
	have := map[int64]*chunk{}
	for _, one := range known {
		if one == nil {
			continue
		}
		for _, k := range one.chunks {
			have[k.id] = k
		}
	}
	for _, id := range ids {
		k := have[id]
		if k == nil {
			k = &chunk{id: id}
			err := r.QueryRow(ctx, `SELECT n, der FROM crl_chunk WHERE id = $1`, id).Scan(&k.n, &k.der)
			if err != nil {
				return store.RowError(err, errListMoved, "read a chunk of a CRL")
			}
			if !k.whole() {
				return errListMoved
			}
		}
		c.chunks = append(c.chunks, k)
	}
	return nil
}

// whole reports whether the chunk has as many entries as were put into it.
func (k *chunk) whole() bool {
	n, octets := 0, 0
	for entry := range entriesOf(k.der) {
		n, octets = n+1, octets+len(entry)
	}
	return n == k.n && octets == len(k.der)
}

// errListMoved is returned by a read that another publication overtook. It is made again.
var errListMoved = countersign.Errorf(countersign.Conflict, "another revocation list was published meanwhile").WithNext("try again")

// chunker cuts entries into chunks.
type chunker struct {
	chunks []*chunk
	open   bool // the last of them takes more
}

// add appends one entry.
func (c *chunker) add(entry []byte) {
	if !c.open || len(c.chunks[len(c.chunks)-1].der)+len(entry) > chunkOctets {
		c.chunks = append(c.chunks, &chunk{id: rand.Int64()}) //nolint:gosec // no secret: it is to be another one
		c.open = true
	}
	last := c.chunks[len(c.chunks)-1]
	last.der = append(last.der, entry...)
	last.n++
}

// without appends the entries of a chunk except those of the serials: the chunk as it is
// if it has none of them. again: its entries go into a chunk that takes more.
func (c *chunker) without(k *chunk, serials map[string]bool, again bool) {
	hit := false
	for entry := range entriesOf(k.der) {
		if hit = serials[string(serialOf(entry))]; hit {
			break
		}
	}
	c.open = false
	if !hit && !again {
		c.chunks = append(c.chunks, k)
		return
	}
	for entry := range entriesOf(k.der) {
		if !serials[string(serialOf(entry))] {
			c.add(entry)
		}
	}
}

// entriesOf yields the entries that appendEntry wrote: each has one octet of length.
func entriesOf(der []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(der) >= 2 {
			n := 2 + int(der[1])
			if n > len(der) || !yield(der[:n]) {
				return
			}
			der = der[n:]
		}
	}
}

// serialOf returns the serial number of an entry without the octet that its sign may need.
func serialOf(entry []byte) []byte {
	serial := entry[4 : 4+entry[3]]
	if serial[0] == 0 && len(serial) > 1 {
		return serial[1:]
	}
	return serial
}

// fresh returns the chunks of c that before does not have, and the ids of those of before
// that c does not have.
func (c *content) fresh(before *content) (fresh []*chunk, gone []int64) {
	old := map[int64]bool{}
	if before != nil {
		for _, k := range before.chunks {
			old[k.id] = true
		}
	}
	for _, k := range c.chunks {
		if !old[k.id] {
			fresh = append(fresh, k)
		}
		delete(old, k.id)
	}
	for id := range old {
		gone = append(gone, id)
	}
	slices.Sort(gone)
	return fresh, gone
}
