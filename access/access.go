// Package access decides whether a client may connect, as which device, and with which
// permissions. [Decider.Decide] returns the same verdict for every gateway, broker and
// proxy.
//
// A decision changes no record. Package ra acts on what follows from it, such as a first
// use or a fork.
package access

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/policy"
)

// Decide returns the verdict on a connection, from what is on record now: it identifies
// the client, then reads its permissions. It refuses a client that it cannot identify.
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

// setBudget sets the budget of the verdict from the rules of the fleet as they are on
// record now. Most decisions have read these rules and set it already. One about an
// operator's application has not, because no fleet accepts or refuses its token.
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

// identify determines which client connects. A certificate takes precedence: a user name
// beside it is only a claim, never a login.
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
	rec, err := d.presentedRecord(ctx, leaf)
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
