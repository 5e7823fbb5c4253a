package lockout

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	// firstBlock is the length of an address's first block. Each further one is twice as
	// long, up to maxBlock: a day stops a guesser, and is short enough for other clients
	// behind the same address.
	firstBlock = 10 * time.Minute
	maxBlock   = 24 * time.Hour
	// strikeMemory is how long after its end a block still makes the next one longer.
	strikeMemory = 7 * 24 * time.Hour
	// maxBlocks bounds the blocks in memory and on record, about 16 MB.
	maxBlocks = 64 << 10
)

// Block is an address or a network that is refused for a time.
type Block struct {
	Prefix   netip.Prefix
	Manual   bool // made by an operator; refuses proven devices too
	Reason   string
	Failures int // that led to it; 0 if manual
	Strikes  int // number of recent blocks of this address, including this one; 0 if manual
	Since    time.Time
	Until    time.Time

	changed time.Time
}

// live reports whether the block is in force at now. A lifted block has Until equal to
// Since. A block that begins in the future was made by a wrong clock, and must not refuse
// clients until its end.
func (b *Block) live(now time.Time) bool {
	return now.Before(b.Until) && b.Since.Before(b.Until) && !b.Since.After(now.Add(countersign.ClockSkew))
}

// blocklist has the blocks in force, and those that have ended as long as they make the
// next one longer.
type blocklist struct {
	by     map[netip.Prefix]*Block
	v4     [33]int // number of blocks of each prefix length, so that find tries only these
	v6     [65]int
	manual int
}

// find returns the block that refuses src at now; of several the one that ends last. With
// manual it looks only for blocks by operators.
func (l *blocklist) find(src netip.Prefix, now time.Time, manual bool) (found Block, ok bool) {
	for bits, n := range l.lengths(src)[:src.Bits()+1] {
		if n == 0 {
			continue
		}
		p := netip.PrefixFrom(src.Addr(), bits).Masked()
		if b := l.by[p]; b != nil && b.live(now) && (b.Manual || !manual) && b.Until.After(found.Until) {
			found, ok = *b, true
		}
	}
	return found, ok
}

func (l *blocklist) lengths(p netip.Prefix) []int {
	if p.Addr().Is4() {
		return l.v4[:]
	}
	return l.v6[:]
}

// strike adds the next block of an address and returns it.
func (l *blocklist) strike(src netip.Prefix, failures int, now time.Time) Block {
	b := Block{
		Prefix: src, Failures: failures, Strikes: 1, Since: now, changed: now,
		Reason: fmt.Sprintf("%d wrong credentials within %s", failures, window),
	}
	if last := l.by[src]; last != nil && now.Sub(last.Until) < strikeMemory {
		b.Strikes = last.Strikes + 1
	}
	b.Until = now.Add(min(firstBlock<<min(b.Strikes-1, 10), maxBlock))
	l.put(b, now)
	return b
}

// put adds a block, unless a later one of its prefix is known.
func (l *blocklist) put(b Block, now time.Time) {
	old := l.by[b.Prefix]
	if old != nil && old.changed.After(b.changed) {
		return
	}
	l.remove(b.Prefix)
	if b.Manual && !b.live(now) {
		return // it does not make a later block longer
	}
	if len(l.by) >= maxBlocks {
		l.evict(now)
	}
	if l.by == nil {
		l.by = map[netip.Prefix]*Block{}
	}
	l.by[b.Prefix] = &b
	l.note(&b, 1)
}

func (l *blocklist) remove(p netip.Prefix) {
	if b := l.by[p]; b != nil {
		delete(l.by, p)
		l.note(b, -1)
	}
}

func (l *blocklist) note(b *Block, n int) {
	l.lengths(b.Prefix)[b.Prefix.Bits()] += n
	if b.Manual {
		l.manual += n
	}
}

// evict removes one block to make room: of a sample, the one that ends first, and so one
// that has ended if there is any. It never removes a block by an operator that is in
// force. Only new blocks evict others, failures do not: to free one address, an attacker
// must get thousands of other addresses blocked.
func (l *blocklist) evict(now time.Time) {
	kept := func(b *Block) bool { return b.Manual && b.live(now) }
	first := least(l.by, func(a, b *Block) bool {
		if kept(a) != kept(b) {
			return kept(b)
		}
		return a.Until.Before(b.Until)
	})
	if !kept(l.by[first]) {
		l.remove(first)
	}
}

// sampled is how many entries least looks at. The order of a map is random, so a small
// sample is enough.
const sampled = 16

// least returns the key of the least value in a sample of a map, which must not be empty.
func least[K comparable, V any](all map[K]V, less func(a, b V) bool) (key K) {
	n := 0
	for k, v := range all {
		if n == 0 || less(v, all[key]) {
			key = k
		}
		if n++; n == sampled {
			break
		}
	}
	return key
}

// sweep removes blocks that have ended and do not make the next one longer.
func (l *blocklist) sweep(now time.Time) {
	for p, b := range l.by {
		if !b.live(now) && (b.Manual || now.Sub(b.Until) >= strikeMemory) {
			l.remove(p)
		}
	}
}
