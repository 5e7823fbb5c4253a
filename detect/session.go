package detect

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	// overlapFor is how long two sessions must be open side by side. The socket of a
	// device that lost its network stays open for up to three minutes, until TCP's
	// own probes find it dead; by then the device is back from another address.
	overlapFor = 5 * time.Minute
	// maxSessions bounds the open sessions remembered for one device, the latest; one
	// takes about 400 octets.
	maxSessions = 4
	// maxOverlaps bounds the overlaps that wait to be old enough.
	maxOverlaps = 10_000
)

// holders follows who has sessions open, for shared_certificate.
type holders struct {
	m       *machine
	rule    *Rule
	by      table[string, holder]
	waiting []overlap // in the order of due
}

type holder struct {
	open []openSession
	told burst
}

type openSession struct {
	id, cred, client, via, node, remote string
	fleet                               string
	cert                                countersign.CertRef
	from                                netip.Prefix
	at                                  time.Time
	seq                                 int64
}

type overlap struct {
	device, older, newer string
	due                  time.Time
}

func (h *holders) init(m *machine) {
	h.m, h.rule = m, m.rules[SharedCertificate]
	h.by = table[string, holder]{max: maxDevices, ttl: memory}
}

func (h *holders) opened(e *countersign.Event) {
	from, _, ok := source(e.Remote)
	s := openSession{
		id: e.Data["session"], cred: e.Data["credential"], client: e.Data["client_id"], via: e.Via, node: e.Data["node"], remote: e.Remote,
		fleet: e.Fleet, cert: e.Cert, from: from, at: e.At, seq: e.Seq,
	}
	if !ok || s.id == "" || s.cert.IsZero() && s.cred == "" {
		return
	}
	d, _ := h.by.touch(e.Device, e.At)
	// Whoever comes to a node as a client that it has takes that one's session over.
	// The end of it may be written down later, or be lost.
	d.open = slices.DeleteFunc(d.open, func(o openSession) bool {
		return o.client != "" && o.client == s.client && o.via == s.via && o.node == s.node
	})
	for i := range d.open {
		o := &d.open[i]
		// A device may well speak IPv4 in one program and IPv6 in another.
		if o.cert == s.cert && o.cred == s.cred && o.from != s.from && o.from.Addr().Is4() == s.from.Addr().Is4() && len(h.waiting) < maxOverlaps {
			h.waiting = append(h.waiting, overlap{e.Device, o.id, s.id, e.At.Add(overlapFor)})
		}
	}
	if len(d.open) == maxSessions {
		d.open = append(d.open[:0], d.open[1:]...)
	}
	d.open = append(d.open, s)
}

func (h *holders) closed(e *countersign.Event) {
	d := h.by.look(e.Device)
	if d == nil {
		return
	}
	for i := range d.open {
		if d.open[i].id == e.Data["session"] {
			d.open = slices.Delete(d.open, i, i+1)
			return
		}
	}
}

// restarted forgets the sessions of a node that has begun anew: if it crashed,
// nobody told of their end.
func (h *holders) restarted(node string) {
	for _, e := range h.by.by {
		e.value.open = slices.DeleteFunc(e.value.open, func(s openSession) bool { return s.node == node })
	}
}

// lost forgets all sessions: the end of any may be among the events that were lost.
func (h *holders) lost() {
	for _, e := range h.by.by {
		e.value.open = nil
	}
}

// elapse finds the overlaps that have lasted.
func (h *holders) elapse(now time.Time) {
	n := 0
	for n < len(h.waiting) && !h.waiting[n].due.After(now) {
		h.lasted(&h.waiting[n])
		n++
	}
	if n > 0 {
		h.waiting = append(h.waiting[:0], h.waiting[n:]...)
	}
}

func (h *holders) lasted(o *overlap) {
	d := h.by.look(o.device)
	if d == nil {
		return
	}
	a, b := d.find(o.older), d.find(o.newer)
	if a == nil || b == nil || !d.told.quiet(h.rule, o.due) {
		return
	}
	d.told.told = o.due
	h.m.emit(h.rule, found{seq: 0, due: o.due, Finding: countersign.Finding{
		At: o.due, Subject: deviceSubject(o.device), Device: o.device, Fleet: b.fleet, Cert: b.cert, Remote: b.remote,
		Summary: "What " + o.device + " shows to come in is in use from " + a.from.Addr().String() + " and " + b.from.Addr().String() + " at once.",
		Evidence: map[string]string{
			"address_1": a.remote, "client_id_1": a.client, "since_1": stamp(a.at), "session_1": a.id, "via_1": a.via,
			"address_2": b.remote, "client_id_2": b.client, "since_2": stamp(b.at), "session_2": b.id, "via_2": b.via,
			"sessions": strconv.Itoa(len(d.open)),
		},
		Events: []int64{a.seq, b.seq},
	}})
}

func (d *holder) find(session string) *openSession {
	for i := range d.open {
		if d.open[i].id == session {
			return &d.open[i]
		}
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// takenOverWithin is how long after a session was taken over its successor may
// open: the two are written down in either order.
const takenOverWithin = time.Minute

// clients follows who is thrown out by whom, for client_id_conflict.
type clients struct {
	m    *machine
	rule *Rule
	by   table[clientKey, client]
}

type clientKey struct{ device, id string }

type client struct {
	session string // open now
	ended   time.Time
	taken   bool // the last one was taken over
	last    party
	past    []sighted // parties within the window
	back    burst     // returns
}

// party is somebody who uses a client id, as far as parties can be told apart.
type party struct {
	from  netip.Prefix
	hello string
}

type sighted struct {
	party
	at time.Time
}

// maxParties bounds those remembered for one client id.
const maxParties = 8

func (c *clients) init(m *machine) {
	c.m, c.rule = m, m.rules[ClientIDConflict]
	c.by = table[clientKey, client]{max: maxDevices, ttl: max(c.rule.Window, c.rule.Again)}
}

func (c *clients) opened(e *countersign.Event) {
	from, _, ok := source(e.Remote)
	id := e.Data["client_id"]
	if !ok || id == "" {
		return
	}
	s, known := c.by.touch(clientKey{e.Device, id}, e.At)
	p := party{from, e.Data["hello"]}
	took := known && (s.session != "" || s.taken && e.At.Sub(s.ended) <= takenOverWithin)
	if took && s.last != p && s.seen(p, e.At.Add(-c.rule.Window)) {
		if s.back.add(c.rule, hit{at: e.At, seq: e.Seq}) {
			c.m.report(c.rule, e, countersign.Finding{
				Subject: deviceSubject(e.Device), Device: e.Device, Events: s.back.seqs(),
				Summary: "Two clients throw each other out as " + clip(id) + ".",
				Evidence: map[string]string{
					"client_id": id, "address_1": s.last.from.String(), "address_2": from.String(), "hello_1": s.last.hello, "hello_2": p.hello,
					"returns": strconv.Itoa(len(s.back.hits)),
				},
			})
		}
	}
	s.session, s.last, s.taken = e.Data["session"], p, false
	s.note(p, e.At)
}

func (c *clients) closed(e *countersign.Event) {
	s := c.by.look(clientKey{e.Device, e.Data["client_id"]})
	if s == nil || s.session != e.Data["session"] {
		return
	}
	s.session, s.ended, s.taken = "", e.At, e.Code == countersign.Code(countersign.EndTakenOver)
}

func (c *client) seen(p party, since time.Time) bool {
	for _, s := range c.past {
		if s.party == p && !s.at.Before(since) {
			return true
		}
	}
	return false
}

func (c *client) note(p party, at time.Time) {
	keep := c.past[:0]
	for _, s := range c.past {
		if s.party != p {
			keep = append(keep, s)
		}
	}
	if len(keep) == maxParties {
		keep = append(keep[:0], keep[1:]...)
	}
	c.past = append(keep, sighted{p, at})
}

// clip shortens what a client chose, for a sentence.
func clip(s string) string {
	const most = 80
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
