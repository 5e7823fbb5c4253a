package sdk

import (
	"context"
	"iter"

	"github.com/countersign-iot/countersign/api"
)

// Alerts lists alerts, those that opened last first, without their evidence.
func (a *Admin) Alerts(ctx context.Context, f api.AlertFilter) iter.Seq2[api.Alert, error] {
	return list[api.Alert](ctx, a, "/alerts", query(f))
}

// Alert gets one alert with its evidence and what was done about it.
func (a *Admin) Alert(ctx context.Context, id string) (*api.Alert, error) {
	return get[api.Alert](ctx, a, alertPath(id, ""))
}

// AlertActions lists what can be done about an alert and what would happen now.
func (a *Admin) AlertActions(ctx context.Context, id string) (*api.AlertActions, error) {
	return get[api.AlertActions](ctx, a, alertPath(id, "/actions"))
}

// AcknowledgeAlert says that a person is at it.
func (a *Admin) AcknowledgeAlert(ctx context.Context, id string, n api.AlertNote) (*api.Alert, error) {
	return post[api.Alert](ctx, a, alertPath(id, "/acknowledge"), n)
}

// AssignAlert returns an alert to an operator, by name.
func (a *Admin) AssignAlert(ctx context.Context, id string, to api.AlertAssign) (*api.Alert, error) {
	return post[api.Alert](ctx, a, alertPath(id, "/assign"), to)
}

// CommentAlert says something about an alert.
func (a *Admin) CommentAlert(ctx context.Context, id string, n api.AlertNote) (*api.Alert, error) {
	return post[api.Alert](ctx, a, alertPath(id, "/comment"), n)
}

// SnoozeAlert silences an alert for a time.
func (a *Admin) SnoozeAlert(ctx context.Context, id string, s api.AlertSnooze) (*api.Alert, error) {
	return post[api.Alert](ctx, a, alertPath(id, "/snooze"), s)
}

// CloseAlert ends an alert.
func (a *Admin) CloseAlert(ctx context.Context, id string, c api.AlertClose) (*api.Alert, error) {
	return post[api.Alert](ctx, a, alertPath(id, "/close"), c)
}

// SuspendAlert puts the device of an alert on hold and cuts its sessions.
func (a *Admin) SuspendAlert(ctx context.Context, id string, n api.AlertNote) (*api.AlertActed, error) {
	return post[api.AlertActed](ctx, a, alertPath(id, "/suspend"), n)
}

// ReactivateAlert ends the suspension of an alert's device.
func (a *Admin) ReactivateAlert(ctx context.Context, id string, n api.AlertNote) (*api.AlertActed, error) {
	return post[api.AlertActed](ctx, a, alertPath(id, "/reactivate"), n)
}

// RevokeAlert takes all certificates of an alert's device away for good.
func (a *Admin) RevokeAlert(ctx context.Context, id string, r api.Revoke) (*api.AlertActed, error) {
	return post[api.AlertActed](ctx, a, alertPath(id, "/revoke"), r)
}

// BlockAlert refuses the address of an alert for a time.
func (a *Admin) BlockAlert(ctx context.Context, id string, b api.AlertBlock) (*api.AlertActed, error) {
	return post[api.AlertActed](ctx, a, alertPath(id, "/block"), b)
}

func alertPath(id, act string) string { return "/alerts/" + segment(id) + act }

// AlertRules lists what can be found, by name.
func (a *Admin) AlertRules(ctx context.Context) iter.Seq2[api.AlertRule, error] {
	return list[api.AlertRule](ctx, a, "/alert-rules", query())
}

// Channels lists the channels that notify of alerts.
func (a *Admin) Channels(ctx context.Context) iter.Seq2[api.Channel, error] {
	return list[api.Channel](ctx, a, "/channels", query())
}

// TestChannel sends a test by a channel and returns how that went.
func (a *Admin) TestChannel(ctx context.Context, name string) (*api.ChannelTest, error) {
	return post[api.ChannelTest](ctx, a, "/channels/"+segment(name)+"/test", nil)
}
