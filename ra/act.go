package ra

import (
	"net/netip"
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
// connection in the commit it cannot be said; then its own words are returned.
func NotRecorded(err error) error {
	if countersign.CodeOf(err) != countersign.Unavailable || store.Unconfirmed(err) {
		return err
	}
	return countersign.Errorf(countersign.Unavailable, "this was not recorded and is not in force: the database cannot be written now").
		WithNext("look at the disk and the database, then do it again").WithRetry(crlWait).WithCause(err)
}

// Act is an operator's act on a device.
type Act struct {
	Device string
	Actor  countersign.Actor
	Note   string // why, in the operator's words
	Via    string // cli, rest
	Alert  string // id of the alert that it is about; empty: none
}

// crlWait is how long an operator's act waits for the list that shows it. The
// sessions are cut before; a list of a million entries may come later.
const crlWait = time.Second

// unknown is the actor where nothing that was shown is known here.
const unknown countersign.Actor = "unknown"

// written is an address for the log; a broker that asks for a device may not pass it on.
func written(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func certEvent(t countersign.EventType, c *countersign.Certificate, by countersign.Actor, why string) countersign.Event {
	return countersign.Event{Type: t, Actor: by, Device: c.Device, Fleet: c.Fleet, Cert: c.Ref(), Reason: why}
}
