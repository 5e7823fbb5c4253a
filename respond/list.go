package respond

import (
	"context"
	"fmt"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/store"
)

// Alert reads one alert: NotFound if there is none. What is still to be done about
// it ends its timeline.
func (d *Responder) Alert(ctx context.Context, id string) (Alert, error) {
	a, err := get(ctx, d.DB, id)
	if err != nil {
		return a, err
	}
	waiting, err := queued(ctx, d.DB, id)
	a.Timeline = append(a.Timeline, waiting...)
	return a, err
}

// Alerts lists alerts, those that opened last first; next is the After of the
// following page, empty at the end.
func (d *Responder) Alerts(ctx context.Context, f Filter) (list []Alert, next string, err error) {
	return f.list(ctx, d.DB)
}

// OpenAlerts is the number of alerts that are not closed, by severity, as of some
// seconds ago.
func (d *Responder) OpenAlerts(s countersign.Severity) int64 {
	d.open.mu.Lock()
	defer d.open.mu.Unlock()
	return d.open.by[s]
}

// Catalog lists the rules by name.
func (d *Responder) Catalog() []countersign.Rule {
	d.init()
	return d.catalog.sorted()
}

// CheckRules refuses with BadRequest a fleet's responses that this server does not
// know: an error in a name would silently change nothing.
func (d *Responder) CheckRules(u countersign.Rules) error {
	d.init()
	return d.catalog.check(u.Respond)
}

// ChannelList returns the state of each channel, in the order of the configuration.
func (d *Responder) ChannelList(ctx context.Context) ([]api.Channel, error) {
	d.init()
	list := make([]api.Channel, 0, len(d.channels))
	for _, c := range d.channels {
		waiting, err := store.Count(ctx, d.DB, `SELECT COUNT(*) FROM notification WHERE channel = $1`, c.Name)
		if err != nil {
			return nil, fmt.Errorf("count notifications: %w", err)
		}
		list = append(list, c.state(int64(waiting)))
	}
	return list, nil
}
