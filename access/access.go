// Package access answers the one question at the door: may this connection come
// in, as whom, and to do what? Every gateway, broker and proxy gets the same
// answer from [Decider.Decide].
//
// A decision changes nothing on record; what it sets in motion (a first use, a
// fork) is package ra's.
package access

import (
	"cmp"
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// clockSkew is how far the start of what is shown may be ahead of our clock.
const clockSkew = countersign.ClockSkew

// Decider decides connections.
type Decider struct {
	DB  *store.DB
	Now func() time.Time
	// CA knows the manufacturers' authorities and their lists.
	CA       *ca.CA
	Registry *registry.Registry
	Secrets  *Secrets
	Tokens   *Tokens
	Policies *policies.Store

	rules   rules
	issuers issuers
	guests  guests
}

// New returns a Decider for the database and the clock of the log. The key of access
// tokens is derived from the sealing key, so that all nodes share it.
func New(events *event.Log, authority *ca.CA, reg *registry.Registry, sealer *keystore.Sealer) (*Decider, error) {
	db, now := events.DB, events.Now
	key, err := sealer.Derive("access tokens")
	if err != nil {
		return nil, fmt.Errorf("couldn't derive the key of access tokens: %w", err)
	}
	return &Decider{
		DB: db, Now: now, CA: authority, Registry: reg,
		Secrets:  &Secrets{DB: db, Now: now, Sealer: sealer},
		Tokens:   &Tokens{DB: db, Now: now, Key: key},
		Policies: &policies.Store{DB: db, Now: now, Events: events},
	}, nil
}

// Decision is a verdict with what it rests on.
type Decision struct {
	countersign.Verdict
	// FirstUse: the certificate is pending, or the device is registered and came by a
	// secret. The verdict holds once the first use is on record.
	FirstUse bool
	// Replaced: the certificate was given up by its device for another, so whoever
	// shows it is a second holder of the identity.
	Replaced bool
	// Known: the certificate is on record, or the secret is right, so Device and Fleet
	// are facts and not claims.
	Known bool
	// Kind of the credential that was shown; empty: none, or a broker vouches.
	Kind countersign.AccessKind
	// Claims is the device that the client says it is, where it does and is not Known.
	Claims string
	// Tried is a keyed hash, 8 hex digits, of what was shown in vain, by which one
	// secret that is tried on many devices can be seen.
	Tried string
	// Ended is since when a certificate on record is good no more; zero where that is
	// not what it was refused for.
	Ended time.Time
	// Subject is the client as the policy of the fleet sees it.
	Subject policy.Subject
	// Judged: the policy of the fleet was asked, since all else was in order.
	Judged bool
	// ReadOnly: it may do nothing but listen, whatever the policy says.
	ReadOnly bool
	// Path of a manufacturer's certificate, where it is valid by CAs that are not on
	// record: the verdict holds once they are.
	Path []*x509.Certificate
}

// Decide judges a connection by what is on record now: first who it is, then what
// it may do. Unknown means no.
func (d *Decider) Decide(ctx context.Context, c countersign.Connection) Decision {
	dec := d.identify(ctx, c)
	if dec.Code == "" && strings.Contains(dec.Device, "/") && strings.HasPrefix(c.Gateway, brokers) {
		dec.Code, dec.Reason = d.checkStranger(ctx, c.ClientID)
	}
	if dec.Code != "" {
		return dec
	}
	if err := d.setBudget(ctx, &dec); err != nil {
		dec.Code, dec.Reason = countersign.Unavailable, "the rules of the fleet cannot be read now"
		return dec
	}
	dec.Allow = true
	d.permit(ctx, c, &dec)
	if dec.ReadOnly {
		dec.Permissions.Publish, dec.Permissions.Retain = countersign.Filters{}, countersign.Filters{}
	}
	return dec
}

// permit grants the identified client what the policy of its fleet permits.
func (d *Decider) permit(ctx context.Context, c countersign.Connection, dec *Decision) {
	in, err := d.Policies.Of(ctx, dec.Fleet)
	if err != nil {
		dec.Allow, dec.Code, dec.Reason = false, countersign.Unavailable, "the policy of the fleet cannot be read now"
		return
	}
	dec.Judged = true
	as := &dec.Subject
	as.Kind, as.Device, as.Fleet, as.Scope = policy.KindOf(dec.Device), dec.Device, dec.Fleet, dec.Scope
	as.ClientID = cmp.Or(c.ClientID, policies.OwnClientID(dec.Device))
	perms, connect, why := in.Policy.Permissions(*as)
	if !connect {
		dec.Allow, dec.Code = false, countersign.NotAllowed
		dec.Reason = fmt.Sprintf("the %s of fleet %s: %s", in, dec.Fleet, why)
		return
	}
	dec.Permissions = perms
}

// setBudget has the verdict carry what the rules of its fleet, as they are on record now,
// say of each client. Where rules were read for the decision it does already; for an
// operator's application, whose token no fleet accepts or refuses, none were.
func (d *Decider) setBudget(ctx context.Context, dec *Decision) error {
	if dec.Budget == (countersign.Budget{}) {
		read, err := d.readRules(ctx, dec.Fleet)
		if err != nil {
			return err
		}
		dec.Budget = read.Budget.WithDefaults()
	}
	if isOperator(dec.Device) {
		dec.Budget.Sessions = max(dec.Budget.Sessions, operatorSessions)
	}
	return nil
}

// operatorSessions is how many sessions a person or an application of an operator may
// have on one node: the pages of a control room share one name.
const operatorSessions = 128

func isOperator(device string) bool { return strings.HasPrefix(device, "operator/") }

// identify determines which client connects. A certificate takes precedence:
// the user name beside it is what the client claims about itself, never a login.
func (d *Decider) identify(ctx context.Context, c countersign.Connection) Decision {
	switch {
	case len(c.Peer) > 0:
		return d.withExchange(ctx, c, d.byCertificate(ctx, c))
	case c.Exchange != nil:
		return d.byExchange(ctx, c)
	case c.Vouched != "":
		return d.byBroker(ctx, c)
	case looksLikeToken(c.Password):
		return d.byToken(ctx, c)
	case len(c.Password) == 0:
		return d.asGuest(ctx, c)
	case looksLikeSAS(c.Password):
		return d.bySAS(ctx, c)
	}
	return d.bySecret(ctx, c)
}

func (d *Decider) byCertificate(ctx context.Context, c countersign.Connection) Decision {
	leaf := c.Peer[0]
	rec, err := d.shown(ctx, leaf)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return refuse(countersign.CertUnknown, "the certificate was not issued by this authority")
	case err != nil:
		return refuse(countersign.Unavailable, "the record of the certificate cannot be read now")
	}
	dec := Decision{Known: true, Replaced: rec.replaced, Verdict: countersign.Verdict{
		Device: rec.device, Fleet: rec.fleet, NotAfter: rec.notAfter,
		Cert: rec.ref,
	}}
	dec.Kind, dec.Subject.CN = countersign.AccessCertificate, leaf.Subject.CommonName
	if dec.Subject.Tags, err = rec.tagsOf(); err != nil {
		dec.Code, dec.Reason = countersign.Unavailable, "the record of the device cannot be read now"
		return dec
	}
	standing, err := d.judge(ctx, d.DB, &rec, Connecting, c.Peer)
	if err != nil {
		dec.Code, dec.Reason = countersign.Unavailable, "the record of the certificate cannot be read now"
		return dec
	}
	dec.Code, dec.Reason, dec.Path = standing.Code, standing.Reason, standing.Path
	dec.Ended = rec.ended(dec.Code)
	if dec.Code == "" {
		dec.Code, dec.Reason = d.checkClient(ctx, c.ClientID, rec.device)
	}
	if dec.Code != "" {
		return dec
	}
	dec.FirstUse, dec.Budget = rec.state == countersign.CertPending, standing.Budget
	if rec.state == countersign.CertSuperseded && rec.acceptUntil.Before(dec.NotAfter) {
		dec.NotAfter = rec.acceptUntil
	}
	return dec
}

func refuse(code countersign.Code, reason string) Decision {
	return Decision{Verdict: countersign.Verdict{Code: code, Reason: reason}}
}

func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

func ago(d time.Duration) string {
	if d < time.Second {
		return "0 s"
	}
	if d < time.Minute {
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	if d < time.Hour {
		return fmt.Sprintf("%d min", int(d.Minutes()))
	}
	if d < 48*time.Hour {
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// checkClient binds the MQTT Client Identifier to the device, by its form and on record:
// ids may hold colons, so "a:b" is also what the device "a:b" connects as, and a must not
// pass for it in a policy or at a broker where all clients share one name space.
func (d *Decider) checkClient(ctx context.Context, client, device string) (countersign.Code, string) {
	if !policies.MayUseClientID(device, client) {
		return countersign.SubjectMismatch, policies.NotItsClientID(device, client)
	}
	if client == "" || client == device || !countersign.IsDeviceID(client) {
		return "", ""
	}
	var other int
	err := d.DB.QueryRow(ctx, `SELECT count(*) FROM device WHERE id = $1`, client).Scan(&other)
	switch {
	case err != nil:
		return countersign.Unavailable, "the record of devices cannot be read now"
	case other > 0:
		return countersign.SubjectMismatch, fmt.Sprintf("client id %.80q is another device's id", client)
	}
	return "", ""
}

// brokers begins the name of a gateway that is another's broker.
const brokers = "hook:"

// checkStranger refuses a guest or an operator's application the client identifiers of
// devices, as [policies.MayUseClientID] has them. At brokers of others all clients share one name
// space, so it would throw the device out there, and get what was kept for it.
func (d *Decider) checkStranger(ctx context.Context, client string) (countersign.Code, string) {
	client, _, _ = strings.Cut(client, "/")
	var marks []string
	var ids []any
	for i := 1; i <= len(client); i++ {
		if (i == len(client) || client[i] == ':') && countersign.IsDeviceID(client[:i]) {
			ids = append(ids, client[:i])
			marks = append(marks, fmt.Sprintf("$%d", len(ids)))
		}
	}
	if len(ids) == 0 {
		return "", ""
	}
	var n int
	err := d.DB.QueryRow(ctx, `SELECT count(*) FROM device WHERE id IN (`+strings.Join(marks, ", ")+`)`, ids...).Scan(&n)
	switch {
	case err != nil:
		return countersign.Unavailable, "the record of devices cannot be read now"
	case n > 0:
		return countersign.SubjectMismatch, "the client id is a device's"
	}
	return "", ""
}
