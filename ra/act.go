package ra

import (
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// By is who acts, and through what.
type By struct {
	Actor countersign.Actor
	Via   string // cli, rest
	// Factory bounds an operator token of role factory; nil: another role acts.
	Factory *Factory
}

// Event returns an event of that type by who acts.
func (b By) Event(t countersign.EventType) countersign.Event {
	return countersign.Event{Type: t, Actor: b.Actor, Via: b.Via}
}

// Factory is an operator token of role factory that acts. What it makes is for new
// devices only; see ADR 19.
type Factory struct {
	Token string    // its id
	Until time.Time // its end
}

// Again notes that an act was in force already, since a time. Its event is recorded
// all the same, so that sessions are cut again on every node: the answer to the first
// time may have been lost, and what was to follow it.
func Again(out *countersign.Revocation, e *countersign.Event, since time.Time) {
	out.Already, out.At = true, since
	note(e, "again", "true")
}

// note adds to what an event carries.
func note(e *countersign.Event, name, value string) {
	if e.Data == nil {
		e.Data = map[string]string{}
	}
	e.Data[name] = value
}

// NotRecorded says of an act that could not be written that nothing happened: an
// operator must not believe a device gone that is not. Where the database lost the
// connection in the commit it cannot be said; then its own words stand.
func NotRecorded(err error) error {
	if countersign.CodeOf(err) != countersign.Unavailable || store.Unconfirmed(err) {
		return err
	}
	return countersign.Errorf(countersign.Unavailable, "this was not recorded and is not in force: the database cannot be written now").
		WithNext("look at the disk and the database, then do it again").WithRetry(crlWait).WithCause(err)
}
