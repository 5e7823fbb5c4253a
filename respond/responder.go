// Package respond turns findings into consequences. A [Responder] groups what the
// detectors and audit checks found into alerts, does what the fleet wants done
// about them, notifies the channels of the configuration, and serves the people who
// work on the alerts. It finds nothing by itself, and changes a device's state
// through its [Lifecycle] alone.
package respond

import (
	"cmp"
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Lifecycle acts on devices, as [ra.Authority] does.
type Lifecycle interface {
	Suspend(context.Context, ra.Act) (*countersign.Revocation, error)
	Reactivate(context.Context, ra.Act) (*countersign.Revocation, error)
	Revoke(context.Context, countersign.RevokeRequest) (*countersign.Revocation, error)
}

// Responder takes findings. Set the fields, then Run.
type Responder struct {
	DB       *store.DB
	Registry *registry.Registry
	Ledger   *lockout.Ledger // blocks addresses
	Events   *event.Log
	Devices  Lifecycle
	Now      func() time.Time
	Log      *slog.Logger
	// Sessions lists the live sessions of this node. A function, because the index of
	// sessions belongs to the gateways, which no keeper may know.
	Sessions func() []countersign.Session
	// Rules is the catalog of detectors and audit checks.
	Rules []countersign.Rule
	// Channels are notified of alerts. config.Check has passed them.
	Channels []config.Channel
	// Host names this server in what is sent.
	Host string
	// Observe is called with the outcome of each finding, mitigation and notification, for
	// metrics. Nil: no calls. A function, because metrics belong to the server.
	Observe func(Outcome)

	once     sync.Once
	catalog  catalog
	channels []*channel
	due      chan struct{} // a mitigation waits
	open     gauge
	sizes    sizes
}

// Outcome is how something ended.
type Outcome struct {
	What   string // finding, mitigation, notification
	Name   string // rule, mitigation, channel
	Result string // severity of a finding; else done, failed, dropped
}

// gauge is the number of live alerts by severity, as it was counted last.
type gauge struct {
	mu sync.Mutex
	by map[countersign.Severity]int64
}

// lock serializes what changes alerts, mitigations and notifications, over all
// nodes: findings are few, and one lock cannot deadlock with itself.
const lock = "respond"

// writeTime bounds the wait for the database where the caller does not.
const writeTime = 10 * time.Second

func (d *Responder) init() {
	d.once.Do(func() {
		d.due = make(chan struct{}, 1)
		d.catalog = catalog{}
		for _, r := range d.Rules {
			d.catalog[r.Name] = r
		}
		for _, c := range d.Channels {
			d.channels = append(d.channels, &channel{Channel: c, due: make(chan struct{}, 1)})
		}
	})
}

func (d *Responder) now() time.Time { return store.Time(store.Micros(d.Now())) }

func (d *Responder) observe(what, name, how string) {
	if d.Observe != nil {
		d.Observe(Outcome{what, name, how})
	}
}

// wake has the workers look at once instead of at their next turn.
func (d *Responder) wake() {
	wake(d.due)
	for _, c := range d.channels {
		wake(c.due)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is to look anyway
	}
}

// newID makes an id that is unique and easily read aloud.
func newID() string { return rand.Text()[:13] } // 65 bits

// taking is one transaction that changes alerts.
type taking struct {
	*Responder
	tx     *store.Tx
	now    time.Time
	fleets map[string]map[string][]countersign.Mitigation // the responses of fleets, by name
	sent   map[*channel]int                               // notifications of this transaction
	total  int                                            // alerts; negative: not counted yet
}

// begin takes the lock and has the workers woken after the commit.
func (d *Responder) begin(ctx context.Context, tx *store.Tx) (*taking, error) {
	d.init()
	if err := tx.Lock(ctx, lock); err != nil {
		return nil, err
	}
	t := &taking{
		Responder: d, tx: tx, now: d.now(), total: -1,
		fleets: map[string]map[string][]countersign.Mitigation{}, sent: map[*channel]int{},
	}
	tx.AfterCommit(func() {
		for c, n := range t.sent {
			c.paced(t.now, n)
		}
		d.wake()
	})
	return t, nil
}

// acts returns the response to a finding.
func (t *taking) acts(ctx context.Context, f countersign.Finding) ([]countersign.Mitigation, error) {
	respond, known := t.fleets[f.Fleet]
	if !known && f.Fleet != "" {
		fleet, err := t.Registry.Fleet(ctx, t.tx, f.Fleet)
		if err != nil && countersign.CodeOf(err) != countersign.NotFound {
			return nil, err
		}
		respond = fleet.Rules.Respond
		t.fleets[f.Fleet] = respond
	}
	return t.catalog.plan(f, respond), nil
}

// entry is what an act adds to the record: a line to the alert, and an event.
type entry struct {
	Line
	kind countersign.EventType
	via  string
	why  string // the reason of the event; empty: the text of the line
}

// record saves a changed alert with an entry.
func (t *taking) record(ctx context.Context, a *Alert, e entry) error {
	a.ChangedAt, e.At = t.now, t.now
	a.add(e.Line)
	if err := a.save(ctx, t.tx); err != nil {
		return err
	}
	out := a.event(e.kind, e.Actor, cmp.Or(e.why, e.Text))
	out.Via, out.Data["act"] = e.via, e.Act
	return t.Events.Append(ctx, t.tx, out)
}
