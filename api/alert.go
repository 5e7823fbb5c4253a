package api

import "time"

// Alert is findings of one rule about one subject that want a person.
type Alert struct {
	ID           string      `json:"id"`
	Rule         string      `json:"rule" doc:"The detector or audit check."`
	Severity     string      `json:"severity" enum:"info,low,medium,high,critical" doc:"The highest of its findings."`
	State        string      `json:"state" enum:"open,acknowledged,snoozed,closed"`
	Subject      string      `json:"subject" doc:"What it is about: device:<id>, address:<network>, fleet:<name>, authority:<id> or server."`
	Device       string      `json:"device,omitempty"`
	Fleet        string      `json:"fleet,omitempty"`
	Remote       string      `json:"remote,omitempty" doc:"Address that the last finding names."`
	Summary      string      `json:"summary"`
	Count        int64       `json:"count" doc:"Findings."`
	Assignee     string      `json:"assignee,omitempty" doc:"Name of the operator who looks after it."`
	Resolution   string      `json:"resolution,omitempty" doc:"How it was closed: resolved or not_an_issue."`
	SnoozedUntil time.Time   `json:"snoozed_until,omitzero"`
	FirstSeen    time.Time   `json:"first_seen"`
	LastSeen     time.Time   `json:"last_seen"`
	Why          string      `json:"why,omitempty" doc:"Why it matters. Of one alert only."`
	Do           string      `json:"do,omitempty" doc:"What to do about it. Of one alert only."`
	Evidence     []Finding   `json:"evidence,omitempty" doc:"The last findings, oldest first. Of one alert only."`
	Timeline     []AlertLine `json:"timeline,omitempty" doc:"What was said and done, oldest first. Of one alert only."`
}

// Finding is what a detector or an audit check saw.
type Finding struct {
	At       time.Time         `json:"at"`
	Severity string            `json:"severity"`
	Summary  string            `json:"summary"`
	Device   string            `json:"device,omitempty"`
	Issuer   string            `json:"issuer,omitempty"`
	Serial   string            `json:"serial,omitempty"`
	Remote   string            `json:"remote,omitempty"`
	Evidence map[string]string `json:"evidence,omitempty"`
	Events   []int64           `json:"events,omitempty" doc:"Places in the log of the events that led to it."`
}

// AlertLine is one thing that was said or done about an alert.
type AlertLine struct {
	At      time.Time `json:"at"`
	Actor   string    `json:"actor"`
	Act     string    `json:"act"`
	Outcome string    `json:"outcome" enum:"done,failed,waiting"`
	Text    string    `json:"text,omitempty"`
}

// AlertFilter narrows a list of alerts.
type AlertFilter struct {
	State    string `query:"state" enum:"open,acknowledged,snoozed,closed,live" doc:"live: all but closed."`
	Severity string `query:"severity" enum:"info,low,medium,high,critical"`
	Rule     string `query:"rule" maxLength:"128"`
	Fleet    string `query:"fleet" maxLength:"63"`
	Device   string `query:"device" maxLength:"140"`
}

// AlertNote says something about an alert.
type AlertNote struct {
	Note string `json:"note,omitempty" maxLength:"500"`
}

// AlertAssign returns an alert to an operator.
type AlertAssign struct {
	To   string `json:"to" maxLength:"63" doc:"Name of the operator; empty: no one."`
	Note string `json:"note,omitempty" maxLength:"500"`
}

// AlertSnooze silences an alert for a time.
type AlertSnooze struct {
	Seconds int64  `json:"seconds" minimum:"60" maximum:"7776000" doc:"For how long; up to 90 days."`
	Note    string `json:"note,omitempty" maxLength:"500"`
}

// AlertClose ends an alert.
type AlertClose struct {
	Resolution string `json:"resolution" enum:"resolved,not_an_issue" doc:"not_an_issue: a false alarm."`
	Note       string `json:"note" minLength:"1" maxLength:"500" doc:"Why."`
}

// AlertBlock blocks the address of an alert.
type AlertBlock struct {
	TTLSeconds int64  `json:"ttl_seconds,omitempty" minimum:"60" maximum:"31536000" doc:"Absent: an hour."`
	Note       string `json:"note,omitempty" maxLength:"150"`
}

// AlertAction is one thing that can be done about an alert, with its effect as it
// would be now.
type AlertAction struct {
	Name         string `json:"name" enum:"suspend,reactivate,revoke,block"`
	Possible     bool   `json:"possible"`
	Effect       string `json:"effect" doc:"What would happen now; where it is not possible, why."`
	Undo         string `json:"undo,omitempty" doc:"What undoes it; absent where nothing does."`
	Sessions     int    `json:"sessions" doc:"Live sessions of this node that it ends."`
	Certificates int    `json:"certificates" doc:"Certificates that it changes."`
}

// AlertActions lists what can be done about an alert.
type AlertActions struct {
	Items []AlertAction `json:"items"`
}

// AlertActed is an alert after an act, with what the act took away.
type AlertActed struct {
	Alert Alert  `json:"alert"`
	Cut   *Cut   `json:"cut,omitempty"`
	Block *Block `json:"block,omitempty"`
}

// AlertRule is what the catalog says of a detector or an audit check.
type AlertRule struct {
	Name     string   `json:"name"`
	Title    string   `json:"title" doc:"What it sees."`
	Severity string   `json:"severity" doc:"Usual."`
	Default  []string `json:"default" doc:"What follows where the fleet says nothing."`
	Why      string   `json:"why"`
	Do       string   `json:"do"`
}

// Channel is a way to notify of alerts.
type Channel struct {
	Name      string    `json:"name"`
	Kind      string    `json:"kind" enum:"webhook,mail,syslog"`
	Severity  string    `json:"severity,omitempty" doc:"It gets every alert of at least this severity; absent: what fleets send it."`
	Fleets    []string  `json:"fleets,omitempty" doc:"Absent: all."`
	Waiting   int64     `json:"waiting" doc:"Notifications that are not delivered yet."`
	Failing   bool      `json:"failing,omitempty" doc:"The last attempts of this node failed."`
	Error     string    `json:"error,omitempty" doc:"Of the last attempt."`
	Delivered time.Time `json:"delivered,omitzero" doc:"The last delivery of this node."`
}

// ChannelTest is how a test of a channel went.
type ChannelTest struct {
	Channel   string `json:"channel"`
	Delivered bool   `json:"delivered"`
	Error     string `json:"error,omitempty"`
	Millis    int64  `json:"millis"`
}

// Notice is what a channel is sent; a webhook gets it as it is here. The id is the
// same in each attempt to deliver it.
type Notice struct {
	ID     string    `json:"id"`
	Kind   string    `json:"kind" enum:"opened,changed,failed,digest,test"`
	At     time.Time `json:"at"`
	Host   string    `json:"host,omitempty" doc:"The server."`
	Alert  *Alert    `json:"alert,omitempty"`
	Digest *Digest   `json:"digest,omitempty"`
}

// Digest summarizes many notices.
type Digest struct {
	Since      time.Time        `json:"since"`
	Notices    int64            `json:"notices"`
	BySeverity map[string]int64 `json:"by_severity"`
	ByRule     map[string]int64 `json:"by_rule" doc:"The first ones; others count as other."`
	Alerts     []string         `json:"alerts" doc:"Ids of the first ones."`
}
