package server

import (
	"context"
	"strconv"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// reserves records when the space that only revocations may use is used.
type reserves struct {
	*core
	changes chan store.Reserve
}

// changed takes the state of the reserve from the database. It must not block:
// only the latest state matters.
func (r *reserves) changed(now store.Reserve) {
	for {
		select {
		case r.changes <- now:
			return
		default:
		}
		select {
		case <-r.changes:
		default:
		}
	}
}

// watch puts on record when the reserve of the database is used and when it is
// whole again. The event may use the reserve itself: an alert must not wait for the
// space that it is about.
func (r *reserves) watch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-r.changes:
			e := countersign.Event{
				Type: countersign.ReserveUsed, Actor: countersign.System, Reason: "the database has no space left: only revocations and suspensions are recorded, from the reserve",
				Data: map[string]string{"node": r.events.Node, "size": strconv.FormatInt(now.Size, 10), "left": strconv.FormatInt(now.Left, 10)},
			}
			if !now.InUse {
				e.Type, e.Reason = countersign.ReserveRefilled, "the database has space again"
			}
			err := r.db.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error { return r.events.Append(ctx, tx, e) })
			if err != nil && ctx.Err() == nil {
				r.log.ErrorContext(ctx, "use of the reserve not recorded", "in_use", now.InUse, "error", err)
			}
		}
	}
}
