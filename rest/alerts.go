package rest

import (
	"cmp"
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/respond"
)

// AlertID is a path parameter.
type AlertID struct {
	ID string `path:"id" maxLength:"32" doc:"Alert id."`
}

// onAlert is an act on an alert.
type onAlert[B any] struct {
	AlertID
	Body B
}

// noted is an act on an alert that needs no more than a note.
type noted struct {
	AlertID
	Body *api.AlertNote `required:"false"`
}

func (n *noted) by(ctx context.Context) respond.By { return noting(ctx, value(n.Body).Note) }

// noting returns the caller with a note.
func noting(ctx context.Context, note string) respond.By {
	return respond.By{By: byOf(ctx), Note: note}
}

// defaultBlock is how long the address of an alert is blocked where the request names no
// time.
const defaultBlock = time.Hour

// alerts serves alerts and the channels that notify of them.
type alerts struct {
	responder *respond.Responder
	ca        *ca.CA
}

func (a *alerts) list(ctx context.Context, in *struct {
	api.AlertFilter
	api.Paging
},
) (api.Page[api.Alert], error) {
	shape := func(found respond.Alert) api.Alert { return a.responder.Shape(&found, false) }
	return asPage(shape)(a.responder.Alerts(ctx, respond.Filter{
		State: respond.State(in.State), Severity: countersign.Severity(in.Severity), Rule: in.Rule, Fleet: in.Fleet, Device: in.Device,
		After: in.After, Limit: limitOf(in.Paging),
	}))
}

// whole shapes an alert with all that it holds.
func (a *alerts) whole(found respond.Alert) api.Alert { return a.responder.Shape(&found, true) }

func (a *alerts) get(ctx context.Context, in *AlertID) (api.Alert, error) {
	return as(a.whole)(a.responder.Alert(ctx, in.ID))
}

func (a *alerts) actions(ctx context.Context, in *AlertID) (api.AlertActions, error) {
	list, err := a.responder.Actions(ctx, in.ID)
	return api.AlertActions{Items: list}, err
}

func (a *alerts) acknowledge(ctx context.Context, in *noted) (api.Alert, error) {
	return as(a.whole)(a.responder.Acknowledge(ctx, in.ID, in.by(ctx)))
}

func (a *alerts) comment(ctx context.Context, in *noted) (api.Alert, error) {
	return as(a.whole)(a.responder.Comment(ctx, in.ID, in.by(ctx)))
}

func (a *alerts) assign(ctx context.Context, in *onAlert[api.AlertAssign]) (api.Alert, error) {
	return as(a.whole)(a.responder.Assign(ctx, in.ID, in.Body.To, noting(ctx, in.Body.Note)))
}

func (a *alerts) snooze(ctx context.Context, in *onAlert[api.AlertSnooze]) (api.Alert, error) {
	return as(a.whole)(a.responder.Snooze(ctx, in.ID, time.Duration(in.Body.Seconds)*time.Second, noting(ctx, in.Body.Note)))
}

func (a *alerts) close(ctx context.Context, in *onAlert[api.AlertClose]) (api.Alert, error) {
	return as(a.whole)(a.responder.Close(ctx, in.ID, respond.Resolution(in.Body.Resolution), noting(ctx, in.Body.Note)))
}

func (a *alerts) suspend(ctx context.Context, in *noted) (api.AlertActed, error) {
	alert, r, err := a.responder.Suspend(ctx, in.ID, in.by(ctx))
	return a.acted(ctx, alert, r, countersign.CertificateHold), err
}

func (a *alerts) reactivate(ctx context.Context, in *noted) (api.AlertActed, error) {
	alert, _, err := a.responder.Reactivate(ctx, in.ID, in.by(ctx))
	return api.AlertActed{Alert: a.whole(alert)}, err
}

func (a *alerts) revoke(ctx context.Context, in *onAlert[api.Revoke]) (api.AlertActed, error) {
	reason, err := countersign.ParseReasonCode(in.Body.Reason)
	if err != nil {
		return api.AlertActed{}, err
	}
	alert, r, err := a.responder.Revoke(ctx, in.ID, reason, noting(ctx, in.Body.Note))
	return a.acted(ctx, alert, r, reason), err
}

// acted shapes an act that took the device's identity away.
func (a *alerts) acted(ctx context.Context, alert respond.Alert, r *countersign.Revocation, reason countersign.ReasonCode) api.AlertActed {
	cut := cutOf(ctx, a.ca, r, reason)
	return api.AlertActed{Alert: a.whole(alert), Cut: &cut}
}

func (a *alerts) block(ctx context.Context, in *struct {
	AlertID
	Body *api.AlertBlock `required:"false"`
},
) (api.AlertActed, error) {
	body := value(in.Body)
	length := cmp.Or(time.Duration(body.TTLSeconds)*time.Second, defaultBlock)
	alert, b, err := a.responder.Block(ctx, in.ID, length, noting(ctx, body.Note))
	block := shapeBlock(b)
	return api.AlertActed{Alert: a.whole(alert), Block: &block}, err
}

func (a *alerts) rules(_ context.Context, in *api.Paging) (api.Page[api.AlertRule], error) {
	return cutPage(each(a.responder.Catalog(), func(r countersign.Rule) api.AlertRule {
		out := api.AlertRule{Name: r.Name, Title: r.Title, Severity: string(r.Severity), Default: []string{}, Why: r.Why, Do: r.Do}
		for _, m := range r.Default {
			out.Default = append(out.Default, string(m))
		}
		return out
	}), *in, func(r api.AlertRule) string { return r.Name }), nil
}

func (a *alerts) channels(ctx context.Context, in *api.Paging) (api.Page[api.Channel], error) {
	list, err := a.responder.ChannelList(ctx)
	return cutPage(list, *in, func(c api.Channel) string { return c.Name }), err
}

func (a *alerts) testChannel(ctx context.Context, in *Named) (api.ChannelTest, error) {
	return a.responder.TestChannel(ctx, in.Name, byOf(ctx))
}
