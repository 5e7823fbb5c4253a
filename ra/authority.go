// Package ra is the registration authority: it decides every enrollment, renewal and
// connection, whatever the protocol, and every change of a device's state. Certificate,
// device state, spent evidence and event are written in one transaction before it
// answers. Doors call it; it knows no protocol.
//
// Each flow is read from its entry to the record in one file: enroll.go, renew.go,
// admit.go and lifecycle.go; what a device asks for itself is in device.go. Callers are
// above what they call: below the flows is what they share of a request (request.go), of a
// device's certificates (rotation.go) and of an act (operation.go, act.go), then what
// evidence proves (appraise.go) and how a request is refused (refuse.go).
package ra

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/hold"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Authority decides. Set the fields, then Run. Its exported methods, some thirty, are what
// doors and operators ask of it; the steps of a flow are methods of a type of that flow,
// such as enrollment, or of Authority where flows share them.
type Authority struct {
	DB       *store.DB
	CA       *ca.CA
	Registry *registry.Registry
	Access   *access.Decider
	Ledger   *lockout.Ledger
	Sample   *policies.Sample // of what was decided, for the replay of policies; nil: none
	Events   *event.Log
	CRLs     *ca.Publisher
	Now      func() time.Time
	Log      *slog.Logger
	// Sealer opens the symmetric keys of devices and seals what goes out to be
	// brought back.
	Sealer *keystore.Sealer
	// Secret resolves a reference (file:, env:) to a secret. A function, because only the
	// server may read files.
	Secret func(reference string) ([]byte, error)
	// Holds are the devices that this node refuses although that is not on record; nil:
	// an act that cannot be recorded has no effect at all.
	Holds *hold.Book
	// Observe receives the outcome of each enrollment, renewal and connection, for
	// metrics; empty code: granted. nil: no metrics. A function, because a decision must
	// not import them.
	Observe  func(Outcome)
	seen     latest[registry.Sighting] // last accepted connections, by device
	uses     latest[time.Time]         // last uses of secrets, by id
	thin     thin
	pairs    pairs
	rates    lockout.Rates[string] // of credentials
	refusals lockout.Rates[string] // of those who are known
	rules    rules

	introducer introducer
}

var (
	_ countersign.Enroller   = (*Authority)(nil)
	_ countersign.Gatekeeper = (*Authority)(nil)
)

// Outcome is how a request ended.
type Outcome struct {
	Act    string             // enroll, renew, recover, connect
	Method countersign.Method // of a connection the kind of its credential
	Door   string
	Code   countersign.Code
}

func (d *Authority) observe(o Outcome) {
	if d.Observe != nil {
		d.Observe(o)
	}
}

// overEvents records that a device caused more lines of the log than its budget allows.
func (d *Authority) overEvents(e countersign.Event, budget int) {
	d.Events.Later(countersign.Event{
		Type: countersign.BudgetExceeded, Actor: e.Actor, Device: e.Device, Fleet: e.Fleet, Remote: e.Remote, Via: e.Via,
		Code: countersign.OverBudget, Reason: "the device causes more lines of the log than its budget allows",
		Data: map[string]string{"budget": countersign.BudgetEvents, "limit": strconv.Itoa(budget)},
	})
}

// later writes an event behind, unless enough of its kind were written; see thin.add.
func (d *Authority) later(e countersign.Event, device string) {
	budget := d.Access.BudgetOf(e.Fleet).Events
	write, over := d.thin.add(&e, device, max(budget/windows, 1), d.Now())
	if write {
		d.Events.Later(e)
	}
	if over && e.Device != "" {
		d.overEvents(e, budget)
	}
}

// CheckRules compiles and type-checks what the rules say without running it.
func (d *Authority) CheckRules(u countersign.Rules) error {
	if u.Expression != "" {
		if _, err := d.rules.compile(u.Expression); err != nil {
			return err
		}
	}
	if u.Webhook != nil {
		return checkWebhook(u.Webhook, d.Secret)
	}
	return nil
}

// wrong counts a wrong secret at any door; e is the finding, should it come to one.
func (d *Authority) wrong(ctx context.Context, f lockout.Failure, e countersign.Event) {
	o := d.Ledger.Count(ctx, f)
	if o.ByDevice || o.ByCredential {
		e.Type, e.Reason = countersign.FindingGuessing, "many wrong secrets within an hour; no device is locked out by it, addresses are"
		e.Data = map[string]string{"for_device": strconv.Itoa(o.DeviceFailures), "for_credential": strconv.Itoa(o.CredentialFailures)}
		d.Events.Later(e)
	}
	d.Ledger.Hold(ctx, o)
}

func (d *Authority) lock(ctx context.Context, tx *store.Tx, id string) (registry.Entry, []countersign.Certificate, error) {
	if err := registry.LockDevice(ctx, tx, id); err != nil {
		return registry.Entry{}, nil, err
	}
	dev, err := d.Registry.Device(ctx, tx, id)
	if err != nil {
		return dev, nil, err
	}
	certs, err := ca.DeviceCertificates(ctx, tx, id)
	return dev, certs, err
}

func (d *Authority) lockDevice(ctx context.Context, tx *store.Tx, id string) (registry.Entry, error) {
	if err := registry.LockDevice(ctx, tx, id); err != nil {
		return registry.Entry{}, err
	}
	dev, err := d.Registry.Device(ctx, tx, id)
	if err == nil && dev.State == countersign.DeviceRetired {
		err = countersign.Errorf(countersign.DeviceGone, "device %s is retired", id)
	}
	return dev, err
}
