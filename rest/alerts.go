package rest

import (
	"cmp"
	"context"
	"maps"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/respond"
	"github.com/danielgtaylor/huma/v2"
)

// AlertID is a path parameter.
type AlertID struct {
	ID string `path:"id" maxLength:"32" doc:"Alert id."`
}

type noted struct {
	AlertID
	Body *api.AlertNote `required:"false"`
}

// defaultBlock is how long the address of an alert is blocked where nobody says.
const defaultBlock = time.Hour

func (s *Server) routeAlerts(a huma.API) {
	const tag = "Alerts"
	route(s, a, get("/alerts", tag, "List alerts, those that opened last first"), s.listAlerts)
	route(s, a, get("/alerts/{id}", tag, "Get an alert with its evidence and what was done"), s.getAlert)
	route(s, a, get("/alerts/{id}/actions", tag, "Tell what can be done about an alert, and what would happen now"), s.alertActions)
	route(s, a, act("/alerts/{id}/acknowledge", tag, "Say that a person is at it"), s.acknowledgeAlert)
	route(s, a, act("/alerts/{id}/assign", tag, "Give an alert to an operator"), s.assignAlert)
	route(s, a, act("/alerts/{id}/comment", tag, "Say something about an alert"), s.commentAlert)
	route(s, a, act("/alerts/{id}/snooze", tag, "Silence an alert for a time"), s.snoozeAlert)
	route(s, a, act("/alerts/{id}/close", tag, "End an alert"), s.closeAlert)
	route(s, a, act("/alerts/{id}/suspend", tag, "Put the device of an alert on hold and cut its sessions"), s.suspendAlert)
	route(s, a, act("/alerts/{id}/reactivate", tag, "End the suspension of an alert's device"), s.reactivateAlert)
	route(s, a, act("/alerts/{id}/revoke", tag, "Take all certificates of an alert's device away, for good, and cut its sessions"), s.revokeAlert)
	route(s, a, act("/alerts/{id}/block", tag, "Block the address of an alert"), s.blockAlert)
	route(s, a, get("/alert-rules", tag, "List what can be found, why it matters and what to do"), s.listAlertRules)
	route(s, a, get("/channels", tag, "List the channels by which alerts are told"), s.listChannels)
	route(s, a, act("/channels/{name}/test", tag, "Send a test by a channel"), s.testChannel)
}

func (s *Server) listAlerts(ctx context.Context, in *struct {
	api.AlertFilter
	api.Paging
},
) (api.Page[api.Alert], error) {
	list, next, err := s.Alerts.Alerts(ctx, respond.Filter{
		State: respond.State(in.State), Severity: countersign.Severity(in.Severity), Rule: in.Rule, Fleet: in.Fleet, Device: in.Device,
		After: in.After, Limit: limitOf(in.Paging),
	})
	return page(list, next, func(a respond.Alert) api.Alert { return s.Alerts.Shape(&a, false) }), err
}

// whole shapes an alert with all that it holds.
func (s *Server) whole(a respond.Alert, err error) (api.Alert, error) {
	return s.Alerts.Shape(&a, true), err
}

func (s *Server) getAlert(ctx context.Context, in *AlertID) (api.Alert, error) {
	return s.whole(s.Alerts.Alert(ctx, in.ID))
}

func (s *Server) alertActions(ctx context.Context, in *AlertID) (api.AlertActions, error) {
	list, err := s.Alerts.Actions(ctx, in.ID)
	return api.AlertActions{Items: list}, err
}

// saying is the caller with what he says.
func (s *Server) saying(ctx context.Context, note string) respond.By {
	return respond.By{By: s.by(ctx), Note: note}
}

func (s *Server) note(ctx context.Context, in *noted) respond.By {
	if in.Body == nil {
		return s.saying(ctx, "")
	}
	return s.saying(ctx, in.Body.Note)
}

func (s *Server) acknowledgeAlert(ctx context.Context, in *noted) (api.Alert, error) {
	return s.whole(s.Alerts.Acknowledge(ctx, in.ID, s.note(ctx, in)))
}

func (s *Server) commentAlert(ctx context.Context, in *noted) (api.Alert, error) {
	return s.whole(s.Alerts.Comment(ctx, in.ID, s.note(ctx, in)))
}

func (s *Server) assignAlert(ctx context.Context, in *struct {
	AlertID
	Body api.AlertAssign
},
) (api.Alert, error) {
	return s.whole(s.Alerts.Assign(ctx, in.ID, in.Body.To, s.saying(ctx, in.Body.Note)))
}

func (s *Server) snoozeAlert(ctx context.Context, in *struct {
	AlertID
	Body api.AlertSnooze
},
) (api.Alert, error) {
	return s.whole(s.Alerts.Snooze(ctx, in.ID, time.Duration(in.Body.Seconds)*time.Second, s.saying(ctx, in.Body.Note)))
}

func (s *Server) closeAlert(ctx context.Context, in *struct {
	AlertID
	Body api.AlertClose
},
) (api.Alert, error) {
	return s.whole(s.Alerts.Close(ctx, in.ID, respond.Resolution(in.Body.Resolution), s.saying(ctx, in.Body.Note)))
}

func (s *Server) suspendAlert(ctx context.Context, in *noted) (api.AlertActed, error) {
	a, r, err := s.Alerts.Suspend(ctx, in.ID, s.note(ctx, in))
	cut := s.cut(ctx, r, countersign.CertificateHold)
	return api.AlertActed{Alert: s.Alerts.Shape(&a, true), Cut: &cut}, err
}

func (s *Server) reactivateAlert(ctx context.Context, in *noted) (api.AlertActed, error) {
	a, _, err := s.Alerts.Reactivate(ctx, in.ID, s.note(ctx, in))
	return api.AlertActed{Alert: s.Alerts.Shape(&a, true)}, err
}

func (s *Server) revokeAlert(ctx context.Context, in *struct {
	AlertID
	Body api.Revoke
},
) (api.AlertActed, error) {
	reason, err := countersign.ParseReasonCode(in.Body.Reason)
	if err != nil {
		return api.AlertActed{}, err
	}
	a, r, err := s.Alerts.Revoke(ctx, in.ID, reason, s.saying(ctx, in.Body.Note))
	cut := s.cut(ctx, r, reason)
	return api.AlertActed{Alert: s.Alerts.Shape(&a, true), Cut: &cut}, err
}

func (s *Server) blockAlert(ctx context.Context, in *struct {
	AlertID
	Body *api.AlertBlock `required:"false"`
},
) (api.AlertActed, error) {
	var body api.AlertBlock
	if in.Body != nil {
		body = *in.Body
	}
	length := cmp.Or(time.Duration(body.TTLSeconds)*time.Second, defaultBlock)
	a, b, err := s.Alerts.Block(ctx, in.ID, length, s.saying(ctx, body.Note))
	block := shapeBlock(b)
	return api.AlertActed{Alert: s.Alerts.Shape(&a, true), Block: &block}, err
}

func (s *Server) listAlertRules(_ context.Context, in *api.Paging) (api.Page[api.AlertRule], error) {
	list := page(s.Alerts.Catalog(), "", func(r respond.Rule) api.AlertRule {
		out := api.AlertRule{Name: r.Name, Title: r.Title, Severity: string(r.Severity), Default: []string{}, Why: r.Why, Do: r.Do}
		for _, m := range r.Default {
			out.Default = append(out.Default, string(m))
		}
		return out
	})
	return pageOf(list.Items, *in, func(r api.AlertRule) string { return r.Name }), nil
}

func (s *Server) listChannels(ctx context.Context, in *api.Paging) (api.Page[api.Channel], error) {
	list, err := s.Alerts.ChannelList(ctx)
	return pageOf(list, *in, func(c api.Channel) string { return c.Name }), err
}

func (s *Server) testChannel(ctx context.Context, in *Named) (api.ChannelTest, error) {
	return s.Alerts.TestChannel(ctx, in.Name, s.by(ctx))
}

// checkChannels tells of channels that do not deliver.
func (s *Server) checkChannels(ctx context.Context) []api.Check {
	if s.Alerts == nil {
		return nil
	}
	list, err := s.Alerts.ChannelList(ctx)
	if err != nil {
		s.problem(ctx, err)
		return nil // the check of the database says so
	}
	checks := make([]api.Check, 0, len(list))
	for _, c := range list {
		check := api.Check{Name: "channel " + c.Name, Level: api.LevelOK, Message: "delivers what it is sent"}
		switch {
		case c.Failing:
			check.Level, check.Message = api.LevelWarn, "does not deliver: "+c.Error
			check.Fix = "countersign alert test " + c.Name
		case c.Delivered.IsZero():
			check.Message = "has not been used since the server started"
		}
		checks = append(checks, check)
	}
	return checks
}

// setRespond changes what a fleet says about some rules and leaves the others.
func setRespond(rules *countersign.Rules, change map[string][]string) {
	out := maps.Clone(rules.Respond) // the transaction may be tried again
	for name, acts := range change {
		if out == nil {
			out = map[string][]countersign.Mitigation{}
		}
		delete(out, name)
		for _, m := range acts {
			out[name] = append(out[name], countersign.Mitigation(m))
		}
	}
	rules.Respond = out
}
