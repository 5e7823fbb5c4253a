package registry

import (
	"context"
	"fmt"

	"github.com/countersign-iot/countersign/store"
)

// CountDevices returns the number of devices of a fleet that are not retired.
func (r *Registry) CountDevices(ctx context.Context, rd store.Reader, fleet string) (n int, err error) {
	if err := rd.QueryRow(ctx, `SELECT COUNT(*) FROM device WHERE fleet = $1 AND state <> 'retired'`, fleet).Scan(&n); err != nil {
		return 0, fmt.Errorf("count the devices of %s: %w", fleet, store.Wrap(err))
	}
	return n, nil
}
