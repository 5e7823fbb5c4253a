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
	// settled is how many sessions a device must have had before a change of it says
	// anything.
	settled = 3
	// maxFaces and maxPlaces bound how many clients and networks of a device are
	// remembered; the one that was seen least recently makes room.
	maxFaces  = 4
	maxPlaces = 8
	// common is how many devices of a fleet make a client nothing special: the
	// firmware of a rollout.
	common = 3
	// maxCommon bounds the clients remembered for all fleets.
	maxCommon = 20_000
)

// profiles learn how and from where each device comes, for identity_change. What
// is known of a device outlives the renewal of its certificate, and ends with its
// identity.
type profiles struct {
	m     *machine
	rule  *Rule
	seed  maphash.Seed
	by    lockout.Table[string, profile]
	fleet lockout.Table[face, carriers]
	ways  lockout.Table[way, time.Time] // when a device first went there
}

// way is from one network to another.
type way struct{ from, to netip.Prefix }

// beaten is how old a way must be to count as common.
const beaten = 24 * time.Hour

// profile is what is known of a device.
type profile struct {
	sessions int
	faces    []uint64 // hashes of client sides, the latest last
	places   []netip.Prefix
	told     burst
	// Of the last session, for evidence.
	hello, software, protocol string
}

// face is a client side in one fleet.
type face struct {
	fleet string
	side  uint64
}

// carriers are the first devices that showed a face.
type carriers struct{ devices []string }

func (p *profiles) init(m *machine) {
	p.m, p.rule, p.seed = m, m.rules[IdentityChange], maphash.MakeSeed()
	p.by = lockout.Table[string, profile]{Max: maxDevices, TTL: max(memory, lasts(p.rule))}
	p.fleet = lockout.Table[face, carriers]{Max: maxCommon, TTL: memory}
	p.ways = lockout.Table[way, time.Time]{Max: maxSources, TTL: memory}
}

func (p *profiles) forget(device string) { p.by.Drop(device) }

// issued begins anew with a first certificate; a renewal changes nothing.
func (p *profiles) issued(e *countersign.Event) {
	if first(e) {
		p.forget(e.Device)
	}
}

// first reports whether a certificate is not a renewal.
func first(e *countersign.Event) bool {
	return e.Type == countersign.CertAccepted || e.Data["predecessor"] == ""
}

// side is what a client shows of itself before it has said anything of weight.
func (p *profiles) side(e *countersign.Event) uint64 {
	return maphash.String(p.seed, e.Data["hello"]+"\x00"+e.Data["software"]+"\x00"+e.Data["protocol"])
}

// opened learns from a session and returns the way by which the device came.
func (p *profiles) opened(e *countersign.Event) came {
	_, place, ok := source(e.Remote)
	if !ok {
		return came{}
	}
	d, _ := p.by.Touch(e.Device, e.At)
	side := p.side(e)
	c := came{at: e.At}
	if n := len(d.places); n > 0 {
		c.way = way{d.places[n-1], place}
	}
	strange := d.sessions >= settled && !slices.Contains(d.faces, side) && !p.usual(e, side) &&
		!slices.Contains(d.places, place) && !p.beaten(c.way, e.At)
	if strange && d.told.add(p.rule, hit{at: e.At, seq: e.Seq}) {
		p.found(e, d, c.way)
	}
	if c.from.IsValid() && !strange { // a thief beats no way
		first, gone := p.ways.Touch(c.way, e.At)
		if !gone {
			*first = e.At
		}
		c.at = *first
	}
	d.sessions++
	d.hello, d.software, d.protocol = e.Data["hello"], e.Data["software"], e.Data["protocol"]
	d.faces, d.places = latest(d.faces, side, maxFaces), latest(d.places, place, maxPlaces)
	p.carry(e, side)
	return c
}

// came is the way by which a device came, and when the first device did. The way is
// zero where the device was not known.
type came struct {
	way
	at time.Time
}

// beaten reports whether others have gone a way for long: within a carrier, or to a
// service hall.
func (p *profiles) beaten(w way, now time.Time) bool {
	first := p.ways.Look(w)
	return first != nil && now.Sub(*first) >= beaten
}

func (p *profiles) found(e *countersign.Event, d *profile, w way) {
	p.m.report(p.rule, e, countersign.Finding{
		Subject: deviceSubject(e.Device), Device: e.Device,
		Summary: e.Device + " came as another client from another network at once.",
		Evidence: map[string]string{
			"network_before": w.from.String(), "network": w.to.String(), "family_changed": strconv.FormatBool(w.from.Addr().Is4() != w.to.Addr().Is4()),
			"hello_before": d.hello, "hello": e.Data["hello"], "software_before": d.software, "software": e.Data["software"],
			"protocol_before": d.protocol, "protocol": e.Data["protocol"], "sessions_before": strconv.Itoa(d.sessions),
		},
	})
}

// usual reports whether enough other devices of the fleet look like this.
func (p *profiles) usual(e *countersign.Event, side uint64) bool {
	c := p.fleet.Look(face{e.Fleet, side})
	return c != nil && len(c.devices) >= common && !slices.Contains(c.devices, e.Device)
}

func (p *profiles) carry(e *countersign.Event, side uint64) {
	c, _ := p.fleet.Touch(face{e.Fleet, side}, e.At)
	if len(c.devices) < common && !slices.Contains(c.devices, e.Device) {
		c.devices = append(c.devices, e.Device)
	}
}

// latest moves v to the end of a list, and drops the first of one that is full.
func latest[T comparable](list []T, v T, most int) []T {
	if i := slices.Index(list, v); i >= 0 {
		list = slices.Delete(list, i, i+1)
	} else if len(list) == most {
		list = slices.Delete(list, 0, 1)
	}
	return append(list, v)
}

// crowds watch addresses that are new, for new_address_crowd.
type crowds struct {
	m    *machine
	rule *Rule
	by   lockout.Table[netip.Prefix, crowd]

	began time.Time // of the first session seen
}

// learning is how much of the log must have been seen before an address or a way
// can be called new.
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

// opened counts where the devices come from that gather at a new address. A site
// that got another address brings its devices from one network; stolen
// identities come from as many as they were stolen in. A carrier moves its devices
// among networks of its own all the time, by ways that have been gone before.
func (c *crowds) opened(e *countersign.Event, by came) {
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
