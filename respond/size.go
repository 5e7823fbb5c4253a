package respond

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// sizeAge is how long the size of a fleet counts as known: a fleet that shrinks by a
// hundredth within it would be odd.
const sizeAge = time.Minute

// sizes has how many devices fleets have at least, as they were counted last.
type sizes struct {
	mu sync.Mutex
	by map[string]fleetSize
}

type fleetSize struct {
	atLeast int
	whole   bool // atLeast are all
	at      time.Time
}

// dueFleet returns the fleet of the mitigation that is due first, if devices are held by
// it; due is false where none is due.
func (d *Responder) dueFleet(ctx context.Context) (fleet string, due bool, err error) {
	var act countersign.Mitigation
	err = d.DB.QueryRow(ctx, `SELECT fleet, act FROM mitigation WHERE state IN ('waiting', 'running') AND next_at <= $1 ORDER BY next_at, id LIMIT 1`,
		store.Micros(d.now())).Scan(&fleet, &act)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("look for a mitigation that is due: %w", store.Wrap(err))
	}
	if act == countersign.MitigateBlock {
		fleet = "" // blocks are counted over all fleets
	}
	return fleet, true, nil
}

// sizeOf returns how many devices a fleet has at least: all, or enough for twice the
// devices that the server holds by itself now. It is counted outside of the transaction
// that claims a mitigation, because a count of a large fleet takes a while and all writes
// would wait for it.
func (d *Responder) sizeOf(ctx context.Context, fleet string) (int, error) {
	now := d.now()
	n, err := held(ctx, d.DB, fleet, now)
	if err != nil {
		return 0, err
	}
	n = max(n, fewHeld) // another node may hold some more meanwhile
	need := 2 * (n + 1) * 100 / heldShare
	d.sizes.mu.Lock()
	known := d.sizes.by[fleet]
	d.sizes.mu.Unlock()
	if now.Sub(known.at).Abs() < sizeAge && (known.whole || known.atLeast*heldShare/100 > n) {
		return known.atLeast, nil
	}
	size, err := d.Registry.DevicesUpTo(ctx, fleet, need)
	if err != nil {
		return 0, err
	}
	d.sizes.mu.Lock()
	defer d.sizes.mu.Unlock()
	if d.sizes.by == nil {
		d.sizes.by = map[string]fleetSize{}
	}
	d.sizes.by[fleet] = fleetSize{size, size < need, now}
	return size, nil
}

// held counts the devices of a fleet that the server held by itself within limitWindow.
func held(ctx context.Context, r store.Reader, fleet string, now time.Time) (int, error) {
	return store.Count(ctx, r, `SELECT COUNT(*) FROM mitigation WHERE fleet = $1 AND began_at > $2 AND act IN ('suspend', 'revoke')`,
		fleet, store.Micros(now.Add(-limitWindow)))
}
