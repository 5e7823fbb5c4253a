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
	// maxManual bounds the blocks that operators make, which nothing pushes out. It is a
	// list for the exception; longer ones belong into a firewall.
	maxManual = 4096
	// minManual and mostManual bound a block that an operator makes. It always ends: a
	// forgotten one would be found by a device in the field.
	minManual  = time.Minute
	mostManual = 365 * 24 * time.Hour
	// widest4 and widest6 are the largest networks that may be blocked: a slip of the
	// pen must not shut out all clients.
	widest4, widest6 = 8, 16
	// maxReason bounds an operator's words.
	maxReason = 200
)

// Block has an operator refuse a network: its Prefix for its Reason until its
// Until. It replaces a block of the same network. An IPv6 network is
// blocked by the /64 or wider. It refuses with BadRequest what is out of bounds and
// with Conflict a network that may never be blocked, or one too many.
func (l *Ledger) Block(ctx context.Context, b Block, by countersign.Actor, via string) (Block, error) {
	b.Manual, b.Strikes, b.Failures = true, 0, 0
	block, _, err := l.block(store.Emergency(ctx), b, by, via)
	return block, err
}

// Refuse blocks a network as the ledger does by itself: what can be guessed is
// refused, and a client that proves to hold the key of a certificate on record passes. So
// a finding that is wrong, or a thief behind the same NAT, shuts no honest device
// out. made is false if a block holds already, which stays. It refuses as
// [Ledger.Block] does.
func (l *Ledger) Refuse(ctx context.Context, b Block, via string) (block Block, made bool, err error) {
	b.Reason = strings.ToValidUTF8(b.Reason[:min(len(b.Reason), maxReason)], "")
	b.Manual, b.Strikes, b.Failures = false, 1, 0
	return l.block(ctx, b, countersign.System, via)
}

// block records a block and returns it, or the one that holds already.
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
	if left := b.Until.Sub(now).Round(time.Second); left < minManual || left > mostManual {
		return countersign.Errorf(countersign.BadRequest, "a block of %s is not between %s and %s", left, minManual, mostManual).
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

// Blocks reads the blocks that hold, by prefix, those after the prefix after; next
// is empty on the last page.
func (l *Ledger) Blocks(ctx context.Context, after string, limit int) (list []Block, next string, err error) {
	limit = store.PageSize(limit)
	list, err = l.list(ctx, `WHERE ends_at > $1 AND prefix > $2 ORDER BY prefix LIMIT $3`, store.Micros(l.Now()), after, limit+1)
	list, next = store.Page(list, limit, func(b *Block) string { return b.Prefix.String() })
	return list, next, err
}
