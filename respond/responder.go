// Package respond turns findings into consequences. A [Responder] groups what the
// detectors and audit checks found into alerts, does what the fleet wants done
// about them, notifies the channels of the configuration, and serves the people who
// work on the alerts. It finds nothing by itself, and changes a device's standing
// through package ra alone.
package respond

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
)

// Responder takes findings. Set the fields, then Run.
type Responder struct {
	RA *ra.Authority // acts on devices; its database, keepers, clock and log serve here too
	// Sessions lists the live sessions of this node.
	Sessions func() []countersign.Session
	// Rules is the catalog of detectors and audit checks.
	Rules []countersign.Rule
	// Channels are notified of alerts. config.Check has passed them.
	Channels []config.Channel
	// Host names this server in what is sent.
	Host string
	// Observe is called with the outcome of each finding, mitigation and notification, for
	// metrics. Nil: no calls.
	Observe func(Outcome)

	once     sync.Once
	catalog  map[string]countersign.Rule
	channels []*channel
	due      chan struct{} // a mitigation waits
	open     gauge
}

// Outcome is how something ended.
type Outcome struct {
	What   string // finding, mitigation, notification
	Name   string // rule, mitigation, channel
	Result string // severity of a finding; else done, failed, dropped
}

const (
	// lock serializes what changes alerts, mitigations and notifications, over all
	// nodes: findings are few, and one lock cannot deadlock with itself.
	lock = "respond"
	// pollEvery is how late a node sees what another one queued, or whose time came.
	pollEvery = 5 * time.Second
	// tendEvery is how often snoozed alerts wake and old rows go.
	tendEvery = 15 * time.Second
	// keepDone is how long finished mitigations stay on record: the limits look back
	// an hour, people a little further. The event log keeps all.
	keepDone = 30 * 24 * time.Hour
	// keepClosed is how long a closed alert can be looked at.
	keepClosed = 400 * 24 * time.Hour
)

func (d *Responder) init() {
	d.once.Do(func() {
		d.due = make(chan struct{}, 1)
		d.catalog = map[string]countersign.Rule{}
		for _, r := range d.Rules {
			d.catalog[r.Name] = r
		}
		for _, c := range d.Channels {
			d.channels = append(d.channels, newChannel(c))
		}
	})
}

func (d *Responder) now() time.Time { return store.Time(store.Micros(d.RA.Now())) }

func (d *Responder) observe(o Outcome) {
	if d.Observe != nil {
		d.Observe(o)
	}
}

// wake has the workers look at once instead of at their next turn.
func (d *Responder) wake() {
	poke(d.due)
	for _, c := range d.channels {
		poke(c.due)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is to look anyway
	}
}

// newID makes an id that is unique and easily read aloud.
func newID() string { return rand.Text()[:13] } // 65 bits

// Run does what was queued and notifies the channels, until ctx ends. What is not done
// by then is on record, for the next process.
func (d *Responder) Run(ctx context.Context) error {
	d.init()
	if err := d.adopt(ctx); err != nil && ctx.Err() == nil {
		d.RA.Log.ErrorContext(ctx, "mitigations not taken over", "error", err, "retry_in", turn) // their turn ends
	}
	var wg sync.WaitGroup
	wg.Go(func() { d.loop(ctx, d.due, d.mitigate) })
	for _, c := range d.channels {
		wg.Go(func() { d.loop(ctx, c.due, func(ctx context.Context) (bool, error) { return d.deliver(ctx, c) }) })
	}
	wg.Go(func() {
		tick := time.NewTicker(tendEvery)
		defer tick.Stop()
		for {
			if err := d.tend(ctx); err != nil && ctx.Err() == nil {
				d.RA.Log.ErrorContext(ctx, "alerts not tended", "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	wg.Wait()
	return nil
}

// loop does one piece of work after the other while there is any, then waits.
func (d *Responder) loop(ctx context.Context, due <-chan struct{}, work func(context.Context) (more bool, err error)) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		more, err := work(ctx)
		if err != nil && ctx.Err() == nil {
			d.RA.Log.ErrorContext(ctx, "response not carried out", "error", err)
		}
		if more && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-due:
		case <-tick.C:
		}
	}
}

// adopt makes due again what a process that ended had begun. With PostgreSQL
// another node may be at it: there the end of its turn tells.
func (d *Responder) adopt(ctx context.Context) error {
	if d.RA.DB.Postgres() {
		return nil
	}
	return d.RA.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE mitigation SET next_at = $1 WHERE state = 'running'`, store.Micros(d.now()))
		return err
	})
}

// tend wakes snoozed alerts, forgets what is old and counts what is open.
func (d *Responder) tend(ctx context.Context) error {
	now := d.now()
	if err := d.wakeSnoozed(ctx, now); err != nil {
		return err
	}
	err := d.RA.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		for _, q := range []struct {
			text string
			at   time.Time
		}{
			{`DELETE FROM mitigation WHERE state IN ('done', 'failed') AND made_at < $1`, now.Add(-keepDone)},
			{`DELETE FROM alert WHERE state = 'closed' AND changed_at < $1`, now.Add(-keepClosed)},
			{`DELETE FROM notification WHERE made_at < $1`, now.Add(-2 * maxAge)}, // of channels that are no more
		} {
			if _, err := tx.Exec(ctx, q.text, store.Micros(q.at)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.countOpen(ctx)
}
