package lockout

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// firstBlock is the length of an address's first block, twice that of the next,
	// and so on to maxBlock: a day is long for a guesser and can be waited out by
	// whoever is behind the same address.
	firstBlock = 10 * time.Minute
	maxBlock   = 24 * time.Hour
	// strikeMemory is how long after its end a block still makes the next one longer.
	strikeMemory = 7 * 24 * time.Hour
	// maxBlocks bounds those in memory and on record, about 16 MB.
	maxBlocks = 64 << 10
	// maxManual bounds those that operators make, which nothing pushes out. It is a
	// list for the exception; longer ones belong into a firewall.
	maxManual = 4096
	// minManual and mostManual bound a block that an operator makes. It always ends: a
	// forgotten one would be found by a device in the field.
	minManual  = time.Minute
	mostManual = 365 * 24 * time.Hour
	// widest4 and widest6 are the largest networks that may be blocked: a slip of the
	// pen must not shut everybody out.
	widest4, widest6 = 8, 16
	// maxReason bounds an operator's words.
	maxReason = 200
)

// Block is an address or a network that is refused for a time.
type Block struct {
	Prefix   netip.Prefix
	Manual   bool // made by an operator; refuses proven devices too
	Reason   string
	Failures int // that led to it; 0 if manual
	Strikes  int // how many blocks of this address there were lately, with this one; 0 if manual
	Since    time.Time
	Until    time.Time

	changed time.Time
}

// live says whether it refuses at now. One that was lifted ends where it began. A
// block from the future was made by a clock that was wrong, and must not last until
// the future comes.
func (b *Block) live(now time.Time) bool {
	return now.Before(b.Until) && b.Since.Before(b.Until) && !b.Since.After(now.Add(countersign.ClockSkew))
}

// blocklist holds the blocks, and those that ended for as long as they make the
// next one longer.
type blocklist struct {
	by     map[netip.Prefix]*Block
	v4     [33]int // how many there are of each length, so that find tries those alone
	v6     [65]int
	manual int
}

// find gives the block that refuses src at now: of several the one that ends last.
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

// strike makes the next block of an address.
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

// put takes a block in, unless a later word on its prefix is known.
func (l *blocklist) put(b Block, now time.Time) {
	old := l.by[b.Prefix]
	if old != nil && old.changed.After(b.changed) {
		return
	}
	l.remove(b.Prefix)
	if b.Manual && !b.live(now) {
		return // nothing is held against anybody for it
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

// evict makes room: of a sample the block that ends first goes, which is one that
// has ended where there is any. Failures alone push no block out, only blocks do:
// to free one address an attacker has to spend thousands that are as good.
func (l *blocklist) evict(now time.Time) {
	var first *Block
	n := 0
	for _, b := range l.by {
		if b.Manual && b.live(now) {
			continue
		}
		if first == nil || b.Until.Before(first.Until) {
			first = b
		}
		if n++; n == evictSample {
			break
		}
	}
	if first != nil {
		l.remove(first.Prefix)
	}
}

// sweep forgets blocks that no longer matter.
func (l *blocklist) sweep(now time.Time) {
	for p, b := range l.by {
		if !b.live(now) && (b.Manual || now.Sub(b.Until) >= strikeMemory) {
			l.remove(p)
		}
	}
}

func blockedEvent(b *Block, f Failure) countersign.Event {
	e := countersign.Event{
		Type: countersign.AddressBlocked, Actor: countersign.System, Remote: f.Addr.String(), Via: f.Door, Code: f.Code, Reason: b.Reason,
		At: b.Since, Data: blockData(b),
	}
	e.Data["strikes"] = strconv.Itoa(b.Strikes)
	if f.Device != "" {
		e.Data["claims_device"] = f.Device // not a fact: it stands on no device's page
	}
	return e
}

func blockData(b *Block) map[string]string {
	return map[string]string{"network": b.Prefix.String(), "until": b.Until.UTC().Format(time.RFC3339)}
}

// Block has an operator refuse a network: its Prefix for its Reason until its
// Until. It takes the place of a block of the same network. An IPv6 network is
// blocked by the /64 or wider. It refuses with BadRequest what is out of bounds and
// with Conflict a network that may never be blocked, or one too many.
func (l *Ledger) Block(ctx context.Context, b Block, by countersign.Actor, via string) (Block, error) {
	now := l.Now().UTC().Truncate(time.Microsecond)
	b = Block{
		Prefix: countersign.SourceNetwork(b.Prefix), Manual: true, Reason: b.Reason, Since: now, Until: b.Until.UTC().Truncate(time.Microsecond), changed: now,
	}
	if err := l.checkManual(&b, now); err != nil {
		return Block{}, err
	}
	err := l.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		if err := saveManual(ctx, tx, &b); err != nil {
			return err
		}
		tx.AfterCommit(func() { l.apply(b) })
		return l.append(ctx, tx, countersign.Event{
			Type: countersign.AddressBlocked, Actor: by, Via: via, Reason: b.Reason, Data: blockData(&b),
		})
	})
	if err != nil {
		return Block{}, err
	}
	return b, nil
}

func (l *Ledger) checkManual(b *Block, now time.Time) error {
	if !b.Prefix.IsValid() {
		return countersign.Errorf(countersign.BadRequest, "no network is named").WithNext("name an address or a network")
	}
	widest := widest6
	if b.Prefix.Addr().Is4() {
		widest = widest4
	}
	if b.Prefix.Bits() < widest {
		return countersign.Errorf(countersign.BadRequest, "%s is wider than /%d, the widest that may be blocked", b.Prefix, widest).
			WithNext("block narrower networks, or turn the listener off")
	}
	// To the second: a moment has passed since the caller added the length to the time.
	if left := b.Until.Sub(now).Round(time.Second); left < minManual || left > mostManual {
		return countersign.Errorf(countersign.BadRequest, "a block of %s is not between %s and %s", left, minManual, mostManual).
			WithNext("choose another end")
	}
	if len(b.Reason) > maxReason || !utf8.ValidString(b.Reason) || strings.ContainsRune(b.Reason, 0) {
		return countersign.Errorf(countersign.BadRequest, "the reason is longer than %d octets, or not text", maxReason).WithNext("say it shorter")
	}
	for _, p := range l.Allow {
		if p.Contains(b.Prefix.Addr()) && p.Bits() <= b.Prefix.Bits() {
			return countersign.Errorf(countersign.Conflict, "%s is in %s, which is never blocked", b.Prefix, p).
				WithNext("take it out of limits.allow_networks")
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.blocks.by[b.Prefix]; l.blocks.manual >= maxManual && (old == nil || !old.Manual) {
		return countersign.Errorf(countersign.Conflict, "there are %d blocks by operators, the most there may be", l.blocks.manual).
			WithNext("remove some, or block wider networks")
	}
	return nil
}

// Unblock ends the block of a network at once and forgets what led to it. It
// refuses with NotFound where none is.
func (l *Ledger) Unblock(ctx context.Context, p netip.Prefix, by countersign.Actor, via string) (Block, error) {
	now := l.Now().UTC().Truncate(time.Microsecond)
	var b Block
	err := l.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if b, err = lift(ctx, tx, countersign.SourceNetwork(p), now); err != nil {
			return err
		}
		lifted := b
		tx.AfterCommit(func() { l.apply(lifted) })
		return l.append(ctx, tx, countersign.Event{
			Type: countersign.AddressUnblocked, Actor: by, Via: via, Reason: "an operator ended it", Data: map[string]string{"network": b.Prefix.String()},
		})
	})
	if err != nil {
		return Block{}, err
	}
	b.Until = now
	return b, nil
}

// apply takes in what is on record about a network.
func (l *Ledger) apply(list ...Block) {
	now := l.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range list {
		l.blocks.put(b, now)
		if !b.live(now) {
			l.addresses.clear(b.Prefix.String())
		}
	}
}

func (l *Ledger) append(ctx context.Context, tx *store.Tx, e countersign.Event) error {
	if l.Append == nil {
		return nil
	}
	return l.Append(ctx, tx, e)
}
