package ra

import (
	"cmp"
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// decideTime bounds what a decision reads and writes: a client gives up after ten
// seconds or so, and must be told before that the database does not answer.
const decideTime = 5 * time.Second

// Admit decides a connection and records what the decision sets in motion: the
// first use of a certificate, or a fork. Every refusal is an event.
func (d *Authority) Admit(ctx context.Context, c countersign.Connection) countersign.Verdict {
	deciding, cancel := context.WithTimeout(ctx, decideTime)
	defer cancel()
	var dec access.Decision
	err := d.mayKnock(c)
	if err == nil {
		dec = d.Access.Decide(deciding, c)
		err = d.blocked(c, &dec)
	}
	if err != nil {
		dec.Allow, dec.Code, dec.Reason = false, countersign.RateLimited, countersign.Public(err).Message
		d.connectRefused(c, &dec)
		return dec.Verdict
	}
	if dec.Code == countersign.CertUnknown && len(c.Peer) > 0 {
		dec = d.meet(ctx, c, dec)
		deciding, cancel = context.WithTimeout(ctx, decideTime) // it has a bound of its own
		defer cancel()
	}
	d.refuseHeld(&dec)
	if d.Sample != nil && dec.Judged {
		d.Sample.Connect(dec.Subject, dec.Allow)
	}
	switch {
	case dec.Replaced:
		err = d.forkShown(deciding, &dec)
	case dec.Allow && dec.FirstUse && dec.Cert.IsZero():
		err = d.firstSecret(deciding, c, &dec)
	case dec.Allow && dec.FirstUse:
		err = d.firstUse(deciding, &dec)
	case dec.Allow && dec.Path != nil:
		err = d.newPath(deciding, &dec)
	}
	if err != nil {
		d.Log.ErrorContext(ctx, "connection not decided", "device", dec.Device, "error", countersign.Detail(err))
		dec.Allow, dec.Code, dec.Reason = false, countersign.Unavailable, "what the connection sets in motion cannot be recorded now"
	}
	d.observe(Outcome{"connect", countersign.Method(dec.Kind), c.Gateway, dec.Code})
	if !dec.Allow {
		d.connectRefused(c, &dec)
		d.guessedAt(deciding, c, &dec)
	}
	return dec.Verdict
}

// mayKnock refuses an address that is blocked for guessing, before any work. A
// certificate and the word of a broker are no guesses, and who shows a secret that
// cannot be guessed may prove it; see blocked.
func (d *Authority) mayKnock(c countersign.Connection) error {
	switch {
	case len(c.Peer) > 0 || c.Vouched != "":
		return nil
	case access.Unguessable(c):
		return d.Ledger.Try(c.Remote.Addr())
	}
	return d.Ledger.Check(c.Remote.Addr())
}

// guessedAt counts a wrong secret, of whatever kind.
func (d *Authority) guessedAt(ctx context.Context, c countersign.Connection, dec *access.Decision) {
	if dec.Code != countersign.BadCredential {
		return
	}
	f := lockout.Failure{Addr: c.Remote.Addr(), Device: cmp.Or(dec.Device, dec.Claims), Door: c.Gateway, Code: dec.Code}
	if dec.Tried != "" { // one secret that is tried on many devices is counted like one credential
		f.Credential = "tried-" + dec.Tried
	}
	d.wrong(ctx, f, countersign.Event{Actor: nobody, Device: dec.Device, Fleet: dec.Fleet, Remote: written(c.Remote), Via: c.Gateway})
}

// Exchange begins an authentication of several steps. Its outcome is asked of Admit.
func (d *Authority) Exchange(ctx context.Context, c countersign.Connection, method string) (countersign.Exchange, error) {
	if err := d.Ledger.Try(c.Remote.Addr()); err != nil {
		return nil, err
	}
	return d.Access.Exchange(ctx, c, method)
}

// blocked says whether the address may not come in at all.
func (d *Authority) blocked(c countersign.Connection, dec *access.Decision) error {
	if dec.Known {
		return d.Ledger.CheckProven(c.Remote.Addr())
	}
	return d.Ledger.Check(c.Remote.Addr())
}

// meet accepts the factory certificate of a device and decides anew. The refusal of one
// that no fleet knows stays as it was.
func (d *Authority) meet(ctx context.Context, c countersign.Connection, dec access.Decision) access.Decision {
	ctx, cancel := context.WithTimeout(ctx, acceptTime)
	defer cancel()
	err := d.accept(ctx, c)
	switch code := countersign.CodeOf(err); code {
	case "":
		return d.Access.Decide(ctx, c)
	case countersign.CertUnknown:
		return dec
	case countersign.Internal:
		d.Log.ErrorContext(ctx, "factory certificate not accepted", "error", countersign.Detail(err))
		fallthrough
	default:
		p := countersign.Public(err)
		dec.Code, dec.Reason = p.Code, p.Message
	}
	return dec
}

// firstSecret makes a registered device that came by a secret an active one, durably,
// before the connection is let in.
func (d *Authority) firstSecret(ctx context.Context, c countersign.Connection, dec *access.Decision) error {
	var refused *countersign.Error
	err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		refused = nil
		if err := registry.LockDevice(ctx, tx, dec.Device); err != nil {
			return err
		}
		dev, err := d.Registry.Device(ctx, tx, dec.Device)
		if err != nil {
			return err
		}
		code, reason, first, err := d.Access.Refusal(ctx, tx, sessionOf(&dec.Verdict, c))
		switch {
		case err != nil:
			return err
		case code != "":
			refused = countersign.Errorf(code, "%s", reason)
			return nil
		case !first: // its other connection was
			return nil
		}
		if err := d.Registry.Move(ctx, tx, &dev, countersign.DeviceActive, ""); err != nil {
			return err
		}
		return d.Events.Append(ctx, tx, countersign.Event{
			Type: countersign.DeviceActivated, Actor: countersign.DeviceActor(dev.ID), Device: dev.ID, Fleet: dev.Fleet,
			Data: map[string]string{"credential": dec.Credential},
		})
	})
	if err == nil && refused != nil {
		dec.Allow, dec.Code, dec.Reason = false, refused.Code, refused.Message
	}
	return err
}

// newPath records the CAs by which a manufacturer's certificate is valid now, so that it
// can be judged without its device.
func (d *Authority) newPath(ctx context.Context, dec *access.Decision) error {
	return d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		return d.CA.SetPath(ctx, tx, dec.Cert, dec.Path)
	})
}

// sessionOf is the session that a verdict let in, as far as it rests on something.
func sessionOf(v *countersign.Verdict, c countersign.Connection) countersign.Session {
	return countersign.Session{Device: v.Device, Fleet: v.Fleet, Cert: v.Cert, Credential: v.Credential, NotAfter: v.NotAfter, Remote: c.Remote}
}

// firstUse makes a pending certificate the device's active one, durably, before
// the connection is let in.
func (d *Authority) firstUse(ctx context.Context, dec *access.Decision) error {
	var refused *countersign.Error
	err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		refused = nil
		dev, certs, err := d.lock(ctx, tx, dec.Device)
		if err != nil {
			return err
		}
		shown := find(certs, dec.Cert)
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
		fleet, err := d.Registry.Fleet(ctx, tx, dev.Fleet)
		if err != nil {
			return err
		}
		events, err := d.activate(ctx, tx, fleet.Overlap, certs, shown)
		if err != nil {
			return err
		}
		return d.Events.Append(ctx, tx, events...)
	})
	if err == nil && refused != nil {
		dec.Allow, dec.Code, dec.Reason = false, refused.Code, refused.Message
	}
	return err
}

// forkShown acts on a certificate that its device had given up before using it.
// What was issued before the device last lost its identity means nothing any more.
func (d *Authority) forkShown(ctx context.Context, dec *access.Decision) error {
	const why = "a certificate connected that its device had replaced before using it"
	var forked bool
	err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		dev, certs, err := d.lock(ctx, tx, dec.Device)
		if err != nil {
			return err
		}
		shown, err := d.CA.Certificate(ctx, tx, dec.Cert)
		if err != nil {
			return err
		}
		forked = dev.State == countersign.DeviceActive && !formerLife(&dev, &shown)
		if !forked {
			return nil // refused as it is
		}
		j := rotation{device: dev, certs: certs}
		return d.fork(ctx, tx, &j, countersign.Event{
			Type: countersign.FindingFork, Device: dev.ID, Fleet: dev.Fleet, Cert: dec.Cert, Reason: why,
		})
	})
	if err == nil && forked {
		dec.Code, dec.Reason = countersign.ForkDetected, why
	}
	return err
}

func find(certs []countersign.Certificate, ref countersign.CertRef) *countersign.Certificate {
	for i := range certs {
		if certs[i].Ref() == ref {
			return &certs[i]
		}
	}
	return nil
}

// Opened records the start of a session.
func (d *Authority) Opened(s countersign.Session) {
	d.Access.Opened(s)
	if !strings.Contains(s.Device, "/") { // a guest is no device
		d.seen.add(registry.Sighting{Device: s.Device, At: s.Since, Addr: written(s.Remote)})
	}
	d.uses.add(s)
	e := sessionEvent(countersign.SessionOpened, s)
	e.Data = map[string]string{"session": s.ID, "protocol": s.Protocol, "client_id": s.ClientID}
	for name, v := range map[string]string{"hello": s.Hello, "software": s.Software, "credential": s.Credential, "node": d.Events.Node} {
		if v != "" {
			e.Data[name] = v
		}
	}
	d.pairOpened(e, s)
}

// Closed records its end.
func (d *Authority) Closed(s countersign.Session, end countersign.Ending) {
	d.Access.Closed(s)
	if !d.pairs.closed(s) {
		return
	}
	e := sessionEvent(countersign.SessionClosed, s)
	e.Code, e.Reason = countersign.Code(end.Code), end.Reason
	e.Data = map[string]string{"session": s.ID, "client_id": s.ClientID, "lasted": d.Now().Sub(s.Since).Round(time.Millisecond).String()}
	d.Events.Later(e)
}

// Judged records an act that the session's permissions refused, and has the sample
// take down any.
func (d *Authority) Judged(s countersign.Session, a countersign.Act) {
	if d.Sample != nil {
		d.Sample.Act(s, a)
	}
	if a.Allowed {
		return
	}
	e := sessionEvent(countersign.TopicDenied, s)
	e.Code = countersign.NotAllowed
	e.Reason = a.Action + " is not permitted on this topic"
	e.Data = map[string]string{"action": a.Action, "topic": a.Topic}
	d.later(e, s.Device)
}

func sessionEvent(t countersign.EventType, s countersign.Session) countersign.Event {
	return countersign.Event{
		Type: t, Actor: s.Actor(), Device: s.Device, Fleet: s.Fleet, Cert: s.Cert,
		Remote: written(s.Remote), Via: s.Gateway,
	}
}

// written is an address for the log; a broker that asks for a device may not tell it.
func written(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (d *Authority) connectRefused(c countersign.Connection, dec *access.Decision) {
	e := countersign.Event{
		Type: countersign.ConnectRefused, Actor: countersign.ActorOf(dec.Device), Device: dec.Device, Fleet: dec.Fleet, Cert: dec.Cert,
		Remote: written(c.Remote), Via: c.Gateway, Code: dec.Code, Reason: dec.Reason,
		Data: map[string]string{"protocol": c.Protocol, "client_id": c.ClientID},
	}
	if !dec.Ended.IsZero() {
		e.Data["ended_at"] = dec.Ended.UTC().Format(time.RFC3339)
	}
	for name, v := range map[string]string{"kind": string(dec.Kind), "tried": dec.Tried} {
		if v != "" {
			e.Data[name] = v
		}
	}
	if !dec.Known { // what it claims is data, not a fact
		e.Actor = nobody
	}
	if dec.Device == "" {
		claims(e.Data, c, dec)
	}
	d.later(e, dec.Device)
}

// claims notes what somebody says of itself whom we do not know.
func claims(data map[string]string, c countersign.Connection, dec *access.Decision) {
	if len(c.Peer) > 0 {
		data["claims_subject"] = c.Peer[0].Subject.String()
		data["claims_issuer"] = c.Peer[0].Issuer.String()
	}
	if countersign.IsDeviceID(dec.Claims) {
		data["claims_device"] = dec.Claims
	}
}

// Exceeded records that a session used more than its budget, or wanted to.
func (d *Authority) Exceeded(s countersign.Session, budget string, limit int64) {
	e := sessionEvent(countersign.BudgetExceeded, s)
	e.Code, e.Reason = countersign.OverBudget, "the device uses more than its budget of "+budget
	e.Data = map[string]string{"budget": budget, "limit": strconv.FormatInt(limit, 10)}
	if s.ID != "" {
		e.Data["session"] = s.ID
	}
	d.later(e, s.Device)
}

// pairOpened writes the opening of a session behind, unless its device connects without
// pause.
func (d *Authority) pairOpened(e countersign.Event, s countersign.Session) {
	budget := d.Access.BudgetOf(s.Fleet).Events
	write, before, over := d.pairs.opened(s, max(budget/2, 1), d.Now())
	if write {
		if before > 0 {
			e.Data["more_before"] = strconv.Itoa(before)
		}
		d.Events.Later(e)
	}
	if over {
		d.overEvents(e, budget)
	}
}
