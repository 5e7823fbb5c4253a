package registry

import (
	"context"
	"fmt"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// DevicesUpTo counts the devices of a fleet that are not retired, but not further than most,
// because a count reads an entry of an index for each device. It must not run in a
// transaction, for which all writes would wait.
func (r *Registry) DevicesUpTo(ctx context.Context, fleet string, most int) (n int, err error) {
	var q store.Query
	q.And("fleet = ?", fleet)
	q.And("state IN " + store.In(&q, []countersign.DeviceState{
		countersign.DeviceRegistered, countersign.DevicePending, countersign.DeviceActive, countersign.DeviceSuspended,
	}))
	n, err = store.Count(ctx, r.DB, `SELECT COUNT(*) FROM (SELECT id FROM device`+q.Where()+` LIMIT `+q.Arg(most)+`) AS counted`, q.Args...)
	if err != nil {
		return 0, fmt.Errorf("count the devices of %s: %w", fleet, err)
	}
	return n, nil
}
