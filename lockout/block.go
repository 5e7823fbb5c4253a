package lockout

import (
	"context"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// maxManual bounds the number of blocks that operators make, because these are never
	// evicted. They are for exceptions; a longer list belongs in a firewall.
	maxManual = 4096
	// minManualTime and maxManualTime bound the length of an operator's block. It always
	// ends, because a forgotten one would one day refuse a device in the field.
	minManualTime = time.Minute
	maxManualTime = 365 * 24 * time.Hour
	// widest4 and widest6 are the prefix lengths of the largest networks that may be
	// blocked, so that a typing error does not refuse all clients.
	widest4, widest6 = 8, 16
	// maxReason bounds the reason of a block, in octets.
	maxReason = 200
)

// Block records an operator's block of b.Prefix until b.Until. It replaces a block of the
// same network. An IPv6 prefix longer than /64 is widened to /64. It returns BadRequest if
// b is out of bounds, and Conflict if the network may never be blocked or operators have
// made maxManual blocks already.
func (l *Ledger) Block(ctx context.Context, b Block, by countersign.Actor, via string) (Block, error) {
	b.Manual, b.Strikes, b.Failures = true, 0, 0
	block, _, err := l.block(store.Emergency(ctx), b, by, via)
	return block, err
}

// Refuse blocks a network in the same way as the ledger does by itself: it refuses
// credentials that can be guessed, but not a client that proves to have the key of a
// certificate on record. So a wrong finding, or an attacker behind the same NAT, does not
// lock an honest device out. made is false if the network is already blocked; that block
// is then returned and not changed. The errors are those of [Ledger.Block].
func (l *Ledger) Refuse(ctx context.Context, b Block, via string) (block Block, made bool, err error) {
	b.Reason = strings.ToValidUTF8(b.Reason[:min(len(b.Reason), maxReason)], "")
	b.Manual, b.Strikes, b.Failures = false, 1, 0
	return l.block(ctx, b, countersign.System, via)
}

// block records a block and returns it, or the one that is already in force.
func (l *Ledger) block(ctx context.Context, b Block, by countersign.Actor, via string) (block Block, made bool, err error) {
	now := l.Now().UTC().Truncate(time.Microsecond)
	b.Prefix, b.Since, b.Until, b.changed = countersign.SourceNetwork(b.Prefix), now, b.Until.UTC().Truncate(time.Microsecond), now
	if err := l.checkManual(&b, now); err != nil {
		return Block{}, false, err
	}
	err = l.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		block = b
		if made, err = b.save(ctx, tx); err != nil {
			return err
		}
		if !made {
			block, err = readBlock(ctx, tx, b.Prefix)
			return err
		}
		tx.AfterCommit(func() { l.apply(b) })
		return l.Events.Append(ctx, tx, countersign.Event{
			Type: countersign.AddressBlocked, Actor: by, Via: via, Reason: b.Reason, Data: blockData(&b),
		})
	})
	if err != nil {
		return Block{}, false, err
	}
	return block, made, nil
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
	if left := b.Until.Sub(now).Round(time.Second); left < minManualTime || left > maxManualTime {
		return countersign.Errorf(countersign.BadRequest, "a block of %s is not between %s and %s", left, minManualTime, maxManualTime).
			WithNext("choose another end")
	}
	if len(b.Reason) > maxReason || !utf8.ValidString(b.Reason) || strings.ContainsRune(b.Reason, 0) {
		return countersign.Errorf(countersign.BadRequest, "the reason is longer than %d octets, or not text", maxReason).WithNext("shorten it")
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
		return countersign.Errorf(countersign.Conflict, "there are %d blocks by operators, which is the limit", l.blocks.manual).
			WithNext("remove some, or block wider networks")
	}
	return nil
}

// Unblock ends the block of a network at once and clears the failures that led to it. It
// returns NotFound if the network is not blocked.
func (l *Ledger) Unblock(ctx context.Context, p netip.Prefix, by countersign.Actor, via string) (Block, error) {
	now := l.Now().UTC().Truncate(time.Microsecond)
	var b Block
	err := l.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if b, err = lift(ctx, tx, countersign.SourceNetwork(p), now); err != nil {
			return err
		}
		lifted := b
		tx.AfterCommit(func() { l.apply(lifted) })
		return l.Events.Append(ctx, tx, countersign.Event{
			Type: countersign.AddressUnblocked, Actor: by, Via: via, Reason: "an operator ended it", Data: map[string]string{"network": b.Prefix.String()},
		})
	})
	if err != nil {
		return Block{}, err
	}
	b.Until = now
	return b, nil
}

// Blocks reads one page of the blocks in force. They are sorted by prefix and begin after
// the prefix after. next is empty on the last page.
func (l *Ledger) Blocks(ctx context.Context, after string, limit int) (list []Block, next string, err error) {
	limit = store.PageSize(limit)
	list, err = l.list(ctx, `WHERE ends_at > $1 AND prefix > $2 ORDER BY prefix LIMIT $3`, store.Micros(l.Now()), after, limit+1)
	list, next = store.Page(list, limit, func(b *Block) string { return b.Prefix.String() })
	return list, next, err
}
