package ra

import (
	"cmp"
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// decideTime bounds what a decision reads and writes: a client gives up after ten
// seconds or so, and must be answered before that the database does not answer.
const decideTime = 5 * time.Second

// Admit decides a connection and records what the decision sets in motion: the
// first use of a certificate, or a fork. Every refusal is an event.
func (d *Authority) Admit(ctx context.Context, c countersign.Connection) countersign.Verdict {
	a := &arrival{Authority: d, conn: c}
	deciding, cancel := context.WithTimeout(ctx, decideTime)
	defer cancel()
	err := a.mayKnock()
	if err == nil {
		a.dec = d.Access.Decide(deciding, c)
		err = a.blocked()
	}
	if err != nil {
		a.refuse(countersign.RateLimited, countersign.Public(err).Message)
		a.connectRefused()
		return a.dec.Verdict
	}
	if a.dec.Code == countersign.CertUnknown && len(c.Peer) > 0 {
		a.meet(ctx)
		deciding, cancel = context.WithTimeout(ctx, decideTime) // it has a bound of its own
		defer cancel()
	}
	a.refuseHeld()
	if d.Sample != nil && a.dec.Judged {
		d.Sample.Connect(a.dec.Subject, a.dec.Allow)
	}
	if err := a.follow(deciding); err != nil {
		d.Log.ErrorContext(ctx, "connection not decided", "device", a.dec.Device, "error", countersign.Detail(err))
		a.refuse(countersign.Unavailable, "what the connection sets in motion cannot be recorded now")
	}
	d.observe(Outcome{"connect", countersign.Method(a.dec.Kind), c.Gateway, a.dec.Code})
	if !a.dec.Allow {
		a.connectRefused()
		a.guessedAt(deciding)
	}
	return a.dec.Verdict
}

// refuse makes the verdict a refusal.
func (a *arrival) refuse(code countersign.Code, reason string) {
	a.dec.Allow, a.dec.Code, a.dec.Reason = false, code, reason
}

// follow records what the decision sets in motion.
func (a *arrival) follow(ctx context.Context) error {
	switch dec := &a.dec; {
	case dec.Replaced:
		return a.forkShown(ctx)
	case dec.Allow && dec.FirstUse && dec.Cert.IsZero():
		return a.firstSecret(ctx)
	case dec.Allow && dec.FirstUse:
		return a.firstUse(ctx)
	case dec.Allow && dec.Path != nil:
		return a.newPath(ctx)
	}
	return nil
}

// mayKnock refuses an address that is blocked for guessing, before any work. A
// certificate and the word of a broker are no guesses, and who shows a secret that
// cannot be guessed may prove it; see blocked.
func (a *arrival) mayKnock() error {
	switch {
	case len(a.conn.Peer) > 0 || a.conn.Vouched != "":
		return nil
	case access.Unguessable(a.conn):
		return a.Ledger.Try(a.conn.Remote.Addr())
	}
	return a.Ledger.Check(a.conn.Remote.Addr())
}

// guessedAt counts a wrong secret, of whatever kind.
func (a *arrival) guessedAt(ctx context.Context) {
	if a.dec.Code != countersign.BadCredential {
		return
	}
	f := lockout.Failure{Addr: a.conn.Remote.Addr(), Device: cmp.Or(a.dec.Device, a.dec.Claims), Door: a.conn.Gateway, Code: a.dec.Code}
	if a.dec.Tried != "" { // one secret that is tried on many devices is counted like one credential
		f.Credential = "tried-" + a.dec.Tried
	}
	a.wrong(ctx, f, countersign.Event{Actor: unknown, Device: a.dec.Device, Fleet: a.dec.Fleet, Remote: written(a.conn.Remote), Via: a.conn.Gateway})
}

// Exchange begins an authentication of several steps. Its outcome is asked of Admit.
func (d *Authority) Exchange(ctx context.Context, c countersign.Connection, method string) (countersign.Exchange, error) {
	if err := d.Ledger.Try(c.Remote.Addr()); err != nil {
		return nil, err
	}
	return d.Access.Exchange(ctx, c, method)
}

// blocked reports whether the address may not come in at all.
func (a *arrival) blocked() error {
	if a.dec.Known {
		return a.Ledger.CheckProven(a.conn.Remote.Addr())
	}
	return a.Ledger.Check(a.conn.Remote.Addr())
}

// meet accepts the factory certificate of a device and decides anew. The refusal of one
// that no fleet knows stays as it was.
func (a *arrival) meet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, acceptTime)
	defer cancel()
	err := a.accept(ctx)
	switch code := countersign.CodeOf(err); code {
	case "":
		a.dec = a.Access.Decide(ctx, a.conn)
	case countersign.CertUnknown:
	case countersign.Internal:
		a.Log.ErrorContext(ctx, "factory certificate not accepted", "error", countersign.Detail(err))
		fallthrough
	default:
		p := countersign.Public(err)
		a.dec.Code, a.dec.Reason = p.Code, p.Message
	}
}

// firstSecret makes a registered device that came by a secret an active one, durably,
// before the connection is let in.
func (a *arrival) firstSecret(ctx context.Context) error {
	var refused *countersign.Error
	err := a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		refused = nil
		if err := registry.LockDevice(ctx, tx, a.dec.Device); err != nil {
			return err
		}
		dev, err := a.Registry.Device(ctx, tx, a.dec.Device)
		if err != nil {
			return err
		}
		code, reason, first, err := a.Access.Refusal(ctx, tx, sessionOf(&a.dec.Verdict, a.conn))
		switch {
		case err != nil:
			return err
		case code != "":
			refused = countersign.Errorf(code, "%s", reason)
			return nil
		case !first: // its other connection was
			return nil
		}
		if err := a.Registry.Move(ctx, tx, &dev, countersign.DeviceActive, ""); err != nil {
			return err
		}
		return a.Events.Append(ctx, tx, countersign.Event{
			Type: countersign.DeviceActivated, Actor: countersign.DeviceActor(dev.ID), Device: dev.ID, Fleet: dev.Fleet,
			Data: map[string]string{"credential": a.dec.Credential},
		})
	})
	if err == nil && refused != nil {
		a.refuse(refused.Code, refused.Message)
	}
	return err
}

// newPath records the CAs by which a manufacturer's certificate is valid now, so that it
// can be judged without its device.
func (a *arrival) newPath(ctx context.Context) error {
	return a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		return ca.SetPath(ctx, tx, a.dec.Cert, a.dec.Path)
	})
}

// firstUse makes a pending certificate the device's active one, durably, before
// the connection is let in.
func (a *arrival) firstUse(ctx context.Context) error {
	var refused *countersign.Error
	err := a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		refused = nil
		dev, certs, err := a.lock(ctx, tx, a.dec.Device)
		if err != nil {
			return err
		}
		shown := find(certs, a.dec.Cert)
		switch {
		case dev.State != countersign.DeviceActive || shown == nil:
			refused = countersign.Errorf(countersign.NotAllowed, "the device is %s", dev.State)
			return nil
		case shown.State == countersign.CertActive: // its other connection was first
			return nil
		case shown.State != countersign.CertPending:
			refused = countersign.Errorf(countersign.CertIsRevoked, "the certificate has been %s meanwhile", shown.State)
			return nil
		}
		fleet, err := a.Registry.Fleet(ctx, tx, dev.Fleet)
		if err != nil {
			return err
		}
		events, err := a.activate(ctx, tx, fleet.Overlap, certs, shown)
		if err != nil {
			return err
		}
		return a.Events.Append(ctx, tx, events...)
	})
	if err == nil && refused != nil {
		a.refuse(refused.Code, refused.Message)
	}
	return err
}

// forkShown acts on a certificate that its device had given up before using it.
// What was issued before the device last lost its identity means nothing any more.
func (a *arrival) forkShown(ctx context.Context) error {
	const why = "a certificate connected that its device had replaced before using it"
	var forked bool
	err := a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		dev, certs, err := a.lock(ctx, tx, a.dec.Device)
		if err != nil {
			return err
		}
		shown, err := ca.Certificate(ctx, tx, a.dec.Cert)
		if err != nil {
			return err
		}
		forked = dev.State == countersign.DeviceActive && !formerLife(&dev, &shown)
		if !forked {
			return nil // refused as it is
		}
		j := rotation{device: dev, certs: certs}
		return a.fork(ctx, tx, &j, countersign.Event{
			Type: countersign.FindingFork, Device: dev.ID, Fleet: dev.Fleet, Cert: a.dec.Cert, Reason: why,
		})
	})
	if err == nil && forked {
		a.dec.Code, a.dec.Reason = countersign.ForkDetected, why
	}
	return err
}

func (a *arrival) connectRefused() {
	e := countersign.Event{
		Type: countersign.ConnectRefused, Actor: countersign.ActorOf(a.dec.Device), Device: a.dec.Device, Fleet: a.dec.Fleet, Cert: a.dec.Cert,
		Remote: written(a.conn.Remote), Via: a.conn.Gateway, Code: a.dec.Code, Reason: a.dec.Reason,
		Data: map[string]string{"protocol": a.conn.Protocol, "client_id": a.conn.ClientID},
	}
	if !a.dec.Ended.IsZero() {
		e.Data["ended_at"] = a.dec.Ended.UTC().Format(time.RFC3339)
	}
	for name, v := range map[string]string{"kind": string(a.dec.Kind), "tried": a.dec.Tried} {
		if v != "" {
			e.Data[name] = v
		}
	}
	if !a.dec.Known { // what it claims is data, not a fact
		e.Actor = unknown
	}
	if a.dec.Device == "" {
		a.claims(e.Data)
	}
	a.later(e, a.dec.Device)
}

// claims records what an unknown client claims about itself.
func (a *arrival) claims(data map[string]string) {
	c, dec := a.conn, &a.dec
	if len(c.Peer) > 0 {
		data["claims_subject"] = c.Peer[0].Subject.String()
		data["claims_issuer"] = c.Peer[0].Issuer.String()
	}
	if countersign.IsDeviceID(dec.Claims) {
		data["claims_device"] = dec.Claims
	}
}

// refuseHeld refuses a connection of a device that this node holds back, or one that is
// for such a device.
func (a *arrival) refuseHeld() {
	dec := &a.dec
	for _, id := range append([]string{dec.Device}, dec.Scope...) {
		if h, ok := a.Holds.Of(id); ok && dec.Allow {
			dec.FirstUse = false
			a.refuse(countersign.DeviceOnHold, h.Why())
		}
	}
}
