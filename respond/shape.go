package respond

import (
	"time"

	"github.com/countersign-iot/countersign/api"
)

// Shape is the alert as the API shows it; whole: with evidence, timeline and what
// the catalog says of its rule.
func (d *Responder) Shape(a *Alert, whole bool) api.Alert {
	d.init()
	out := api.Alert{
		ID: a.ID, Rule: a.Rule, Severity: string(a.Severity), State: string(a.State), Subject: a.Subject, Device: a.Device, Fleet: a.Fleet,
		Remote: a.Remote, Summary: a.Summary, Count: a.Count, Assignee: a.Assignee, Resolution: string(a.Resolution),
		SnoozedUntil: utc(a.SnoozedUntil), FirstSeen: utc(a.FirstSeen), LastSeen: utc(a.LastSeen),
	}
	if !whole {
		return out
	}
	r := d.catalog[a.Rule]
	out.Why, out.Do = r.Why, r.Do
	for _, f := range a.Evidence {
		out.Evidence = append(out.Evidence, api.Finding{
			At: utc(f.At), Severity: string(f.Severity), Summary: f.Summary, Device: f.Device, Issuer: f.Cert.Issuer, Serial: string(f.Cert.Serial),
			Remote: f.Remote, Evidence: f.Evidence, Events: f.Events,
		})
	}
	for _, l := range a.Timeline {
		out.Timeline = append(out.Timeline, api.AlertLine{At: utc(l.At), Actor: string(l.Actor), Act: l.Act, Outcome: l.Outcome, Text: l.Text})
	}
	return out
}

// utc is t in UTC; the zero time stays one.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}
