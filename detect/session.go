package detect

import (
	"slices"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

// takenOverWithin is how long after the event of a takeover the event of the successor may
// come, because the two are recorded in either order.
const takenOverWithin = time.Minute

// maxClients bounds the client ids of one device that are remembered, some 400 octets
// each. A device that uses a new one each time replaces only its own.
const maxClients = countersign.DefaultSessions

// clients remembers which parties take over each other's sessions, for the rule
// client_id_conflict.
type clients struct {
	m    *machine
	rule *Rule
	by   lockout.Table[string, []client] // by device; the client id that was used last is at the end
}

type client struct {
	id      string
	session string // open now
	ended   time.Time
	taken   bool // the last session was taken over
	last    party
	past    []sighted // parties within the window, in the order in which they were first seen
	back    burst     // returns
}

type sighted struct {
	party
	at time.Time
}

func (c *clients) init(m *machine) {
	c.m, c.rule = m, m.rules[ClientIDConflict]
	c.by = lockout.Table[string, []client]{Max: maxDevices, TTL: lasts(c.rule)}
}

func (c *clients) opened(e *countersign.Event) {
	from, _, ok := source(e.Remote)
	id := e.Data["client_id"]
	if !ok || id == "" {
		return
	}
	d, _ := c.by.Touch(e.Device, e.At)
	s, known := c.of(d, id, e.At)
	p := party{from, e.Data["hello"]}
	took := known && (s.session != "" || s.taken && e.At.Sub(s.ended) <= takenOverWithin)
	if took && s.last != p && s.seen(p, e.At.Add(-c.rule.Window)) {
		if s.back.add(c.rule, hit{at: e.At, seq: e.Seq}) {
			c.m.report(c.rule, e, countersign.Finding{
				Subject: deviceSubject(e.Device), Device: e.Device, Events: s.back.seqs(),
				Summary: "Two clients end each other's sessions as " + clip(id) + ".",
				Evidence: map[string]string{
					"client_id": id, "address_1": s.last.from.String(), "address_2": from.String(), "hello_1": s.last.hello, "hello_2": p.hello,
					"returns": strconv.Itoa(len(s.back.hits)),
				},
			})
		}
	}
	s.session, s.last, s.taken = e.Data["session"], p, false
	s.note(p, e.At, e.At.Add(-c.rule.Window))
}

// of returns a client id of a device and moves it to the end of its list. At maxClients a
// new one replaces another; those that cannot lead to a finding any more are dropped.
func (c *clients) of(d *[]client, id string, now time.Time) (s *client, known bool) {
	list := slices.DeleteFunc(*d, func(s client) bool {
		return s.id != id && s.session == "" && now.Sub(s.ended) > c.by.TTL && now.Sub(s.back.reported) > c.rule.Again
	})
	found := client{id: id}
	i := slices.IndexFunc(list, func(s client) bool { return s.id == id })
	if known = i >= 0; known {
		found = list[i]
	} else if len(list) >= maxClients {
		i = leastClient(list)
	}
	if i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	*d = append(list, found)
	return &(*d)[len(*d)-1], known
}

// leastClient returns the client id that a new one replaces: the one that was used least
// recently of those that only one party has used and that have no open session, else of
// those that only one party has used, else of all.
func leastClient(list []client) int {
	alone := func(s client) bool { return len(s.past) < 2 }
	if i := slices.IndexFunc(list, func(s client) bool { return alone(s) && s.session == "" }); i >= 0 {
		return i
	}
	return max(slices.IndexFunc(list, alone), 0)
}

func (c *clients) closed(e *countersign.Event) {
	d := c.by.Look(e.Device)
	if d == nil {
		return
	}
	i := slices.IndexFunc(*d, func(c client) bool { return c.id == e.Data["client_id"] })
	if i < 0 || (*d)[i].session != e.Data["session"] {
		return
	}
	s := &(*d)[i]
	s.session, s.ended, s.taken = "", e.At, countersign.EndCode(e.Code) == countersign.EndTakenOver
}

func (c *client) seen(p party, since time.Time) bool {
	return slices.ContainsFunc(c.past, func(s sighted) bool { return s.party == p && !s.at.Before(since) })
}

// note remembers a party. It drops those not seen since a time. At maxParties it replaces
// the newest, so that the parties that began a conflict stay known.
func (c *client) note(p party, at, since time.Time) {
	for i := range c.past {
		if c.past[i].party == p {
			c.past[i].at = at
			return
		}
	}
	c.past = slices.DeleteFunc(c.past, func(s sighted) bool { return s.at.Before(since) })
	if len(c.past) >= maxParties {
		c.past = c.past[:maxParties-1]
	}
	c.past = append(c.past, sighted{p, at})
}

// clip shortens a string that a client chose, for a sentence.
func clip(s string) string {
	const most = 80
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
