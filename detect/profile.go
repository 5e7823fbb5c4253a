package detect

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

const (
	// minSessions is how many sessions a device must have had before a change is unusual.
	minSessions = 3
	// maxClientKinds and maxPlaces bound the kinds of client and the networks that are
	// remembered for a device. At the bound, the one seen least recently is dropped.
	maxClientKinds = 4
	maxPlaces      = 8
	// common is how many other devices of the fleet make a kind of client usual, such as
	// the new firmware of a rollout.
	common = 3
	// maxCommon bounds the kinds of client that are remembered for all fleets.
	maxCommon = 20_000
)

// profiles learns with which kind of client, and from which networks, each device
// connects, for the rule identity_change. A profile is kept when the certificate is
// renewed, and dropped when the device loses its identity.
type profiles struct {
	m     *machine
	rule  *Rule
	seed  maphash.Seed
	by    lockout.Table[string, profile]
	fleet lockout.Table[fleetClient, users]
	moves lockout.Table[move, time.Time] // when a device first made the move
}

// move is the change of a device from one network to another.
type move struct{ from, to netip.Prefix }

// usualMoveAge is how long ago a device must have made a move first, so that the move
// counts as usual.
const usualMoveAge = 24 * time.Hour

// profile is what is known about a device.
type profile struct {
	sessions int
	clients  []uint64 // hashes of its kinds of client, the latest last
	places   []netip.Prefix
	changed  burst
	// Of the last session, for evidence.
	hello, software, protocol string
}

// fleetClient is a kind of client in one fleet.
type fleetClient struct {
	fleet  string
	client uint64
}

// users are the first devices that used a kind of client, at most common.
type users struct{ devices []string }

func (p *profiles) init(m *machine) {
	p.m, p.rule, p.seed = m, m.rules[IdentityChange], maphash.MakeSeed()
	p.by = lockout.Table[string, profile]{Max: maxDevices, TTL: max(memory, lasts(p.rule))}
	p.fleet = lockout.Table[fleetClient, users]{Max: maxCommon, TTL: memory}
	p.moves = lockout.Table[move, time.Time]{Max: maxSources, TTL: memory}
}

func (p *profiles) forget(device string) { p.by.Drop(device) }

// issued drops the profile of a device with a new first certificate. A renewal does not
// change it.
func (p *profiles) issued(e *countersign.Event) {
	if first(e) {
		p.forget(e.Device)
	}
}

// first reports whether a certificate is not a renewal.
func first(e *countersign.Event) bool {
	return e.Type == countersign.CertAccepted || e.Data["predecessor"] == ""
}

// clientKind returns a hash of what the client shows about its software when it connects.
func (p *profiles) clientKind(e *countersign.Event) uint64 {
	return maphash.String(p.seed, e.Data["hello"]+"\x00"+e.Data["software"]+"\x00"+e.Data["protocol"])
}

// opened updates the profile from a session, and reports an unusual one. It returns the
// device's move.
func (p *profiles) opened(e *countersign.Event) firstMove {
	_, place, ok := source(e.Remote)
	if !ok {
		return firstMove{}
	}
	d, _ := p.by.Touch(e.Device, e.At)
	client := p.clientKind(e)
	m := firstMove{at: e.At}
	if n := len(d.places); n > 0 {
		m.move = move{d.places[n-1], place}
	}
	strange := d.sessions >= minSessions && !slices.Contains(d.clients, client) && !p.usualClient(e, client) &&
		!slices.Contains(d.places, place) && !p.usualMove(m.move, e.At)
	if strange && d.changed.add(p.rule, hit{at: e.At, seq: e.Seq}) {
		p.found(e, d, m.move)
	}
	if m.from.IsValid() && !strange { // the sessions of a thief do not make a move usual
		first, known := p.moves.Touch(m.move, e.At)
		if !known {
			*first = e.At
		}
		m.at = *first
	}
	d.sessions++
	d.hello, d.software, d.protocol = e.Data["hello"], e.Data["software"], e.Data["protocol"]
	d.clients, d.places = latest(d.clients, client, maxClientKinds), latest(d.places, place, maxPlaces)
	p.used(e, client)
	return m
}

// firstMove is the move of a device, and when a device first made it. The move is zero if
// the device was not known.
type firstMove struct {
	move
	at time.Time
}

// usualMove reports whether devices have made a move for usualMoveAge, such as within the
// networks of a carrier, or to a repair shop.
func (p *profiles) usualMove(m move, now time.Time) bool {
	first := p.moves.Look(m)
	return first != nil && now.Sub(*first) >= usualMoveAge
}

func (p *profiles) found(e *countersign.Event, d *profile, w move) {
	p.m.report(p.rule, e, countersign.Finding{
		Subject: deviceSubject(e.Device), Device: e.Device,
		Summary: e.Device + " connected with another client and from another network at the same time.",
		Evidence: map[string]string{
			"network_before": w.from.String(), "network": w.to.String(), "family_changed": strconv.FormatBool(w.from.Addr().Is4() != w.to.Addr().Is4()),
			"hello_before": d.hello, "hello": e.Data["hello"], "software_before": d.software, "software": e.Data["software"],
			"protocol_before": d.protocol, "protocol": e.Data["protocol"], "sessions_before": strconv.Itoa(d.sessions),
		},
	})
}

// usualClient reports whether enough other devices of the fleet use this kind of client.
func (p *profiles) usualClient(e *countersign.Event, client uint64) bool {
	c := p.fleet.Look(fleetClient{e.Fleet, client})
	return c != nil && len(c.devices) >= common && !slices.Contains(c.devices, e.Device)
}

func (p *profiles) used(e *countersign.Event, client uint64) {
	c, _ := p.fleet.Touch(fleetClient{e.Fleet, client}, e.At)
	if len(c.devices) < common && !slices.Contains(c.devices, e.Device) {
		c.devices = append(c.devices, e.Device)
	}
}

// latest moves or adds v to the end of a list. It drops the first element to add one to a
// list of limit elements.
func latest[T comparable](list []T, v T, limit int) []T {
	if i := slices.Index(list, v); i >= 0 {
		list = slices.Delete(list, i, i+1)
	} else if len(list) == limit {
		list = slices.Delete(list, 0, 1)
	}
	return append(list, v)
}

// crowds watches new addresses, for the rule new_address_crowd.
type crowds struct {
	m    *machine
	rule *Rule
	by   lockout.Table[netip.Prefix, crowd]

	began time.Time // of the first session seen
}

// learning is how much of the log must have been read before an address or a move counts
// as new.
const learning = 6 * time.Hour

type crowd struct {
	first time.Time
	from  burst // by the network that a device came from before
	names []string
}

func (c *crowds) init(m *machine) {
	c.m, c.rule = m, m.rules[NewAddressCrowd]
	c.by = lockout.Table[netip.Prefix, crowd]{Max: maxSources, TTL: max(memory, lasts(c.rule))}
}

// opened counts the networks from which devices move to a new address. The devices of a
// site that got another address come from one network. Stolen identities come from as many
// networks as they were stolen in. A carrier moves its devices among its own networks all
// the time, so their moves are not new.
func (c *crowds) opened(e *countersign.Event, by firstMove) {
	addr, _, ok := source(e.Remote)
	if !ok {
		return
	}
	if c.began.IsZero() {
		c.began = e.At
	}
	s, known := c.by.Touch(addr, e.At)
	if !known {
		s.first = e.At
	}
	if !by.from.IsValid() || by.from == by.to {
		return
	}
	if e.At.Sub(s.first) > c.rule.Window {
		s.names = nil
		return
	}
	if by.at.Before(s.first) || e.At.Sub(c.began) < learning {
		return
	}
	if len(s.names) < c.rule.Threshold {
		s.names = append(s.names, e.Device)
	}
	if s.from.add(c.rule, hit{at: e.At, seq: e.Seq, key: by.from.String()}) {
		var networks []string
		for _, h := range s.from.hits {
			networks = append(networks, h.key)
		}
		c.m.report(c.rule, e, countersign.Finding{
			Subject: addressSubject(addr), Events: s.from.seqs(),
			Summary:  "Devices from " + strconv.Itoa(len(networks)) + " networks gather at " + addr.Addr().String() + ", where none has been seen before.",
			Evidence: map[string]string{"devices": join(s.names), "networks_before": join(networks), "first": stamp(s.first)},
		})
	}
}
