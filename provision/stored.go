package provision

import (
	"context"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
)

// purgeRecord bounds the recording of a purge that was done, which must not depend on
// how much of the request's time the purge took.
const purgeRecord = 5 * time.Second

// Usage lists what devices use of the message store, in the order of
// [countersign.CompareUsage].
func (p *Provisioner) Usage(ctx context.Context, f countersign.UsageFilter) ([]countersign.Usage, error) {
	if p.Messages == nil {
		return nil, errNoMessages()
	}
	return p.Messages.Usage(ctx, f)
}

// Purge drops what is stored for a device: messages that it retained, messages that
// wait for it, sessions that wait for their client. Live sessions go on. The name may
// be that of a guest or an operator, or of a device that is on record no more, as long
// as something is stored under it.
//
// The purge comes before its event, which has the counts, so that a store that is full
// can be purged while the database is slow; an unknown device is refused before that.
// Where it cannot be recorded, the error says so and the result has what was dropped.
func (p *Provisioner) Purge(ctx context.Context, a ra.Act, what countersign.Stored) (done countersign.Purged, err error) {
	if p.Messages == nil {
		return done, errNoMessages()
	}
	if what.All || what.String() == "" {
		return done, countersign.Errorf(countersign.BadRequest, "the request does not say what to purge").
			WithNext("name retained, queued or sessions")
	}
	fleet, err := p.fleetOfStored(ctx, a.Device)
	if err != nil {
		return done, err
	}
	done, failed := p.Messages.Purge(ctx, a.Device, what)
	if failed != nil && done == (countersign.Purged{}) {
		return done, failed
	}
	e := countersign.Event{Type: countersign.DevicePurged, Actor: a.Actor, Via: a.Via, Reason: a.Note, Device: a.Device, Fleet: fleet}
	e.Data = map[string]string{
		"what": what.String(), "node": p.Events.Node, "sessions": strconv.Itoa(done.Sessions),
		"retained": strconv.Itoa(done.Retained), "retained_octets": strconv.FormatInt(done.RetainedOctets, 10),
		"queued": strconv.Itoa(done.Queued), "queued_octets": strconv.FormatInt(done.QueuedOctets, 10),
	}
	record, cancel := context.WithTimeout(context.WithoutCancel(ctx), purgeRecord)
	defer cancel()
	err = p.DB.Write(record, func(ctx context.Context, tx *store.Tx) error { return p.Events.Append(ctx, tx, e) })
	if err != nil {
		return done, countersign.Errorf(countersign.Unavailable, "what was stored for %s is dropped, but that could not be recorded", a.Device).
			WithNext("repeat the purge when the database can be written again").WithCause(err)
	}
	return done, failed
}

// fleetOfStored returns the fleet of a device, or none for another name under which
// something is stored.
func (p *Provisioner) fleetOfStored(ctx context.Context, name string) (string, error) {
	d, err := p.Registry.Device(ctx, p.DB, name)
	if countersign.CodeOf(err) != countersign.NotFound {
		return d.Fleet, err
	}
	if list, failed := p.Messages.Usage(ctx, countersign.UsageFilter{Device: name, Limit: 1}); failed != nil || len(list) == 0 {
		return "", err
	}
	return "", nil
}

func errNoMessages() error {
	return countersign.Errorf(countersign.Conflict, "this node keeps no messages: its MQTT listeners are off, or another broker carries them").
		WithNext("ask a node that serves MQTT, or use the tools of that broker")
}
