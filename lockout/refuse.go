package lockout

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// Refuse blocks a network as the ledger does by itself: what can be guessed is
// refused, and whoever proves to hold the key of a certificate on record passes. So a
// finding that is wrong, or a thief behind the same NAT, shuts no honest device
// out. made is false where a block holds already, which stands. It refuses as
// [Ledger.Block] does.
func (l *Ledger) Refuse(ctx context.Context, b Block, via string) (block Block, made bool, err error) {
	now := l.Now().UTC().Truncate(time.Microsecond)
	b = Block{
		Prefix: countersign.SourceNetwork(b.Prefix), Reason: strings.ToValidUTF8(b.Reason[:min(len(b.Reason), maxReason)], ""), Strikes: 1,
		Since: now, Until: b.Until.UTC().Truncate(time.Microsecond), changed: now,
	}
	if err := l.checkManual(&b, now); err != nil {
		return Block{}, false, err
	}
	err = l.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		block, made = b, false
		n, err := saveStrike(ctx, tx, &b)
		if err != nil {
			return err
		}
		if !n {
			block, err = scanBlock(tx.QueryRow(ctx, `SELECT `+blockColumns+` FROM address_block WHERE prefix = $1`, b.Prefix.String()))
			if errors.Is(err, sql.ErrNoRows) {
				return countersign.Errorf(countersign.Conflict, "the block of %s changed meanwhile", b.Prefix).WithNext("try again")
			}
			if err != nil {
				return fmt.Errorf("couldn't read the block of %s: %w", b.Prefix, store.Wrap(err))
			}
			return nil
		}
		made = true
		tx.AfterCommit(func() { l.apply(b) })
		return l.append(ctx, tx, countersign.Event{
			Type: countersign.AddressBlocked, Actor: countersign.System, Via: via, Reason: b.Reason, Data: blockData(&b),
		})
	})
	return block, made, err
}
