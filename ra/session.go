package ra

import (
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/registry"
)

// Opened records the start of a session.
func (d *Authority) Opened(s countersign.Session) {
	d.Access.Opened(s)
	if !strings.Contains(s.Device, "/") { // a guest is no device
		d.seen.set(s.Device, registry.Sighting{Device: s.Device, At: s.Since, Addr: written(s.Remote)})
	}
	if id, ok := strings.CutPrefix(s.Credential, "secret:"); ok {
		d.uses.set(id, s.Since)
	}
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

func sessionEvent(t countersign.EventType, s countersign.Session) countersign.Event {
	return countersign.Event{
		Type: t, Actor: s.Actor(), Device: s.Device, Fleet: s.Fleet, Cert: s.Cert,
		Remote: written(s.Remote), Via: s.Gateway,
	}
}

// sessionOf is the session that a verdict let in, as far as it rests on something.
func sessionOf(v *countersign.Verdict, c countersign.Connection) countersign.Session {
	return countersign.Session{Device: v.Device, Fleet: v.Fleet, Cert: v.Cert, Credential: v.Credential, NotAfter: v.NotAfter, Remote: c.Remote}
}
