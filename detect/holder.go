package detect

import (
	"container/heap"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

const (
	// overlapFor is how long a session must stay open after another party has connected
	// with the same identity. The socket of a device that lost its network stays open for
	// up to three minutes, until the probes of TCP find it dead, and meanwhile the device
	// may have connected again from another address.
	overlapFor = 5 * time.Minute
	// partyWindow is how long a party without an open session is remembered, and the
	// time in which short overlaps and returns count together.
	partyWindow = time.Hour
	// minReturns is how many times two parties, each at its own address and with its own
	// TLS fingerprint, must alternate. An honest device changes both at once and back when
	// it is updated and rolled back, but only once.
	minReturns = 3

	// maxIdentities bounds the certificates and secrets that are remembered for one
	// device: those in an overlap, and a secret for each of a few programs.
	maxIdentities = 8
	// maxParties bounds the parties of one identity, and those of one client id. Two are
	// enough for a finding; the others are for devices that move.
	maxParties = 8
	// maxSessions bounds the open sessions of one device that are remembered one by
	// one, about 300 octets each. It is the default of countersign.Budget.Sessions.
	// Further sessions are only counted for their party.
	maxSessions = countersign.DefaultSessions
)

// holders remembers which parties use the identities of devices, for the rule
// shared_certificate.
//
// A party is an address and a TLS fingerprint. Memory is bounded for each device, and
// within a device so that a party which floods replaces only its own entries: the oldest
// party stays, and of the others the first to go is one whose address has several parties.
type holders struct {
	m         *machine
	rule      *Rule
	alternate Rule // the same, for parties that alternate
	by        lockout.Table[string, holder]
	due       dueHeap
}

// holder is a device with its identities.
type holder struct {
	uses   []use
	queued time.Time // its time in holders.due; zero if it is not there
}

// use is the use of one identity.
type use struct {
	cert     countersign.CertRef
	cred     string
	parties  []presence // in the order in which they were first seen
	last     party      // of the session that was opened last
	touched  time.Time
	side     bucket // for how long sessions went on after another party connected, until their clients ended them
	turns    burst  // returns of a party after another one
	findings burst  // only its time of the last report is used
}

// party is a user of an identity or a client id, as far as the server can distinguish
// them.
type party struct {
	from  netip.Prefix
	hello string
}

// elsewhere reports whether q is at another address of the same family. One IPv4 and one
// IPv6 address do not count, because programs of one device may use both.
func (p party) elsewhere(q party) bool {
	return p.from != q.from && p.from.IsValid() && q.from.IsValid() && p.from.Addr().Is4() == q.from.Addr().Is4()
}

// presence is a party with its open sessions.
type presence struct {
	party
	seen time.Time
	open []openSession
}

type openSession struct {
	id, client, via, node, remote string
	fleet                         string
	at                            time.Time
	seq                           int64
	more                          int // 0: one session; else the entry counts so many sessions beyond maxSessions
	// crossed is the session of another party that was opened while this one was open;
	// nil if none was, since the last call of judge.
	crossed *openSession
}

// bucket is a leaky bucket of durations. It approximates their sum over partyWindow
// without a list.
type bucket struct {
	level time.Duration
	at    time.Time
}

// add adds d and reports whether the sum has reached overlapFor.
func (b *bucket) add(d time.Duration, at time.Time) bool {
	leaked := time.Duration(float64(overlapFor) * float64(max(at.Sub(b.at), 0)) / float64(partyWindow))
	b.level, b.at = max(b.level-leaked, 0)+d, at
	return b.level >= overlapFor
}

func (h *holders) init(m *machine) {
	h.m, h.rule = m, m.rules[SharedCertificate]
	h.alternate = *h.rule
	h.alternate.Window, h.alternate.Threshold = partyWindow, minReturns
	h.by = lockout.Table[string, holder]{Max: maxDevices, TTL: memory}
}

func (h *holders) opened(e *countersign.Event) {
	from, _, ok := source(e.Remote)
	s := openSession{
		id: e.Data["session"], client: e.Data["client_id"], via: e.Via, node: e.Data["node"], remote: e.Remote, fleet: e.Fleet, at: e.At, seq: e.Seq,
	}
	cred := e.Data["credential"]
	if !ok || s.id == "" || e.Cert.IsZero() && cred == "" {
		return
	}
	d, _ := h.by.Touch(e.Device, e.At)
	d.takeOver(&s)
	u := d.use(e.Cert, cred, e.At)
	who := party{from, e.Data["hello"]}
	h.cross(e.Device, d, u, who, &s)
	h.takeTurns(e, u, who)
	p := u.party(who, e.At)
	p.open = append(p.open, s)
	d.bound()
}

// takeOver removes the session that s takes over: a client that connects to a node with the
// client id of an open session ends it. The event of that end may come later, or be lost.
func (d *holder) takeOver(s *openSession) {
	d.remove(func(o *openSession) bool {
		return o.more == 0 && o.client != "" && o.client == s.client && o.via == s.via && o.node == s.node
	})
}

func (d *holder) remove(gone func(o *openSession) bool) {
	for i := range d.uses {
		for j := range d.uses[i].parties {
			p := &d.uses[i].parties[j]
			p.open = slices.DeleteFunc(p.open, func(o openSession) bool { return gone(&o) })
		}
	}
}

// use returns the use of an identity, and adds it if there is none. At maxIdentities it
// replaces the one that was used least recently, first of those without open sessions.
func (d *holder) use(cert countersign.CertRef, cred string, at time.Time) *use {
	for i := range d.uses {
		if u := &d.uses[i]; u.cert == cert && u.cred == cred {
			u.touched = at
			return u
		}
	}
	if len(d.uses) >= maxIdentities {
		old := 0
		for i := range d.uses {
			if a, b := d.uses[i].busy(), d.uses[old].busy(); a != b && b || a == b && d.uses[i].touched.Before(d.uses[old].touched) {
				old = i
			}
		}
		d.uses = slices.Delete(d.uses, old, old+1)
	}
	d.uses = append(d.uses, use{cert: cert, cred: cred, touched: at})
	return &d.uses[len(d.uses)-1]
}

func (u *use) busy() bool {
	return slices.ContainsFunc(u.parties, func(p presence) bool { return len(p.open) > 0 })
}

// party returns the presence of a party, and adds it if there is none. It sets the time
// when the party was last seen.
func (u *use) party(who party, at time.Time) *presence {
	for i := range u.parties {
		if u.parties[i].party == who {
			u.parties[i].seen = at
			return &u.parties[i]
		}
	}
	u.parties = slices.DeleteFunc(u.parties, func(p presence) bool { return len(p.open) == 0 && at.Sub(p.seen) > partyWindow })
	if len(u.parties) >= maxParties {
		i := u.leastWorth()
		u.parties = slices.Delete(u.parties, i, i+1)
	}
	u.parties = append(u.parties, presence{party: who, seen: at})
	return &u.parties[len(u.parties)-1]
}

// leastWorth returns the party that another one replaces. It is never the oldest, so that
// the first user stays known. It prefers parties whose address has several fingerprints,
// then those without an open session, then the newest.
func (u *use) leastWorth() int {
	worth := func(i int) int {
		same, w := 0, 0
		for j := range u.parties {
			if u.parties[j].from == u.parties[i].from {
				same++
			}
		}
		if same == 1 {
			w = 2
		}
		if len(u.parties[i].open) > 0 {
			w++
		}
		return w
	}
	least := len(u.parties) - 1
	for i := least - 1; i > 0; i-- {
		if worth(i) < worth(least) {
			least = i
		}
	}
	return least
}

// cross records on each open session of another party that s was opened meanwhile.
func (h *holders) cross(device string, d *holder, u *use, who party, s *openSession) {
	for i := range u.parties {
		p := &u.parties[i]
		if !p.elsewhere(who) {
			continue
		}
		for j := range p.open {
			if p.open[j].crossed == nil {
				by := *s
				p.open[j].crossed = &by
				h.schedule(device, d, s.at.Add(overlapFor))
			}
		}
	}
}

// takeTurns reports two parties that use an identity alternately: each has its own TLS
// fingerprint and its own address, and both return. Two programs of one device that
// changes networks do not count: both fingerprints were seen at one address.
func (h *holders) takeTurns(e *countersign.Event, u *use, who party) {
	last := u.last
	u.last = who
	if !who.elsewhere(last) || who.hello == last.hello || who.hello == "" || last.hello == "" {
		return
	}
	known := slices.ContainsFunc(u.parties, func(p presence) bool { return p.hello == who.hello && e.At.Sub(p.seen) <= partyWindow })
	if !known || u.meet(who.hello, last.hello) || !u.turns.add(&h.alternate, hit{at: e.At, seq: e.Seq}) || !u.findings.quiet(h.rule, e.At) {
		return
	}
	h.m.report(h.rule, e, countersign.Finding{
		Severity: countersign.SeverityHigh, Subject: deviceSubject(e.Device), Device: e.Device, Events: u.turns.seqs(),
		Summary: "Two clients at two addresses use the credential of " + e.Device + " alternately.",
		Evidence: map[string]string{
			"address_1": last.from.String(), "hello_1": last.hello, "address_2": who.from.String(), "hello_2": who.hello,
			"returns": strconv.Itoa(len(u.turns.hits)), "credential": u.cred,
		},
	})
}

// meet reports whether two fingerprints were seen at one address.
func (u *use) meet(a, b string) bool {
	for i := range u.parties {
		for j := range u.parties {
			if p, q := &u.parties[i], &u.parties[j]; p.hello == a && q.hello == b && p.from == q.from {
				return true
			}
		}
	}
	return false
}

// bound keeps the remembered sessions of a device at maxSessions: for the party with the
// most of them, the newest is then only counted.
func (d *holder) bound() {
	total, most, least := 0, (*presence)(nil), 1 // a party keeps one
	for i := range d.uses {
		for j := range d.uses[i].parties {
			p := &d.uses[i].parties[j]
			n := p.single()
			if total += n; n > least {
				most, least = p, n
			}
		}
	}
	if total > maxSessions && most != nil {
		most.squeeze()
	}
}

// single returns how many sessions are remembered one by one.
func (p *presence) single() (n int) {
	for i := range p.open {
		if p.open[i].more == 0 {
			n++
		}
	}
	return n
}

// squeeze counts the newest remembered session instead of remembering it.
func (p *presence) squeeze() {
	counted := slices.IndexFunc(p.open, func(o openSession) bool { return o.more > 0 })
	for i := len(p.open) - 1; i >= 0; i-- {
		if p.open[i].more > 0 {
			continue
		}
		if counted < 0 {
			p.open[i].more = 1
			return
		}
		p.open[counted].more++
		p.open = slices.Delete(p.open, i, i+1)
		return
	}
}

func (h *holders) closed(e *countersign.Event) {
	d := h.by.Look(e.Device)
	if d == nil {
		return
	}
	from, _, _ := source(e.Remote)
	for i := range d.uses {
		u := &d.uses[i]
		for j := range u.parties {
			p := &u.parties[j]
			k := slices.IndexFunc(p.open, func(o openSession) bool { return o.more == 0 && o.id == e.Data["session"] })
			if k < 0 {
				continue
			}
			s := p.open[k]
			p.open = slices.Delete(p.open, k, k+1)
			p.seen = e.At
			h.outlived(e, u, &s)
			return
		}
	}
	d.counted(from)
}

// counted subtracts a session, which was only counted, from a party at this address.
func (d *holder) counted(from netip.Prefix) {
	for i := range d.uses {
		for j := range d.uses[i].parties {
			p := &d.uses[i].parties[j]
			k := slices.IndexFunc(p.open, func(o openSession) bool { return o.more > 0 })
			if p.from != from || k < 0 {
				continue
			}
			if p.open[k].more--; p.open[k].more == 0 {
				p.open = slices.Delete(p.open, k, k+1)
			}
			return
		}
	}
}

// outlived adds up how long sessions went on beside another party's. Only sessions that
// their client ended count, because these were alive until then and no dead sockets.
func (h *holders) outlived(e *countersign.Event, u *use, s *openSession) {
	if s.crossed == nil || countersign.EndCode(e.Code) != countersign.EndClientLeft {
		return
	}
	if !u.side.add(e.At.Sub(s.crossed.at), e.At) || !u.findings.quiet(h.rule, e.At) {
		return
	}
	u.findings.reported = e.At
	f := u.finding(e.Device, s, e.At)
	h.m.emit(h.rule, found{seq: e.Seq, Finding: f})
}

// restarted drops the sessions of a node that has started again, because after a crash
// their end is not in the log. It drops all that were only counted: they may be of any node.
func (h *holders) restarted(node string) {
	for _, d := range h.by.All() {
		d.remove(func(s *openSession) bool { return s.node == node || s.more > 0 })
	}
}

// lost drops all sessions, because the end of any may be among the events that were lost.
func (h *holders) lost() {
	for device := range h.by.All() {
		h.lostOf(device)
	}
}

// lostOf drops the sessions of a device of which some events were not recorded.
func (h *holders) lostOf(device string) {
	if d := h.by.Look(device); d != nil {
		d.remove(func(*openSession) bool { return true })
	}
}

// schedule schedules the next call of judge for the device.
func (h *holders) schedule(device string, d *holder, at time.Time) {
	if !d.queued.IsZero() && !at.Before(d.queued) {
		return // judge runs earlier, and then schedules the device again
	}
	d.queued = at
	heap.Push(&h.due, dueDevice{at, device})
}

// elapse calls judge for the devices that are due at now.
func (h *holders) elapse(now time.Time) {
	for len(h.due) > 0 && !h.due[0].at.After(now) {
		next, _ := heap.Pop(&h.due).(dueDevice)
		d := h.by.Look(next.device)
		if d == nil || !d.queued.Equal(next.at) {
			continue // the device was dropped meanwhile
		}
		d.queued = time.Time{}
		h.judge(next.device, d, next.at)
	}
}

// judge reports the sessions of a device that were open for overlapFor after another party
// connected.
func (h *holders) judge(device string, d *holder, at time.Time) {
	for i := range d.uses {
		u := &d.uses[i]
		for j := range u.parties {
			for k := range u.parties[j].open {
				s := &u.parties[j].open[k]
				if s.crossed == nil {
					continue
				}
				if due := s.crossed.at.Add(overlapFor); due.After(at) {
					h.schedule(device, d, due)
					continue
				}
				if u.findings.quiet(h.rule, at) {
					u.findings.reported = at
					h.m.emit(h.rule, found{due: at, Finding: u.finding(device, s, at)})
				}
				s.crossed = nil // the next connection of another party counts again
			}
		}
	}
}

// finding returns the finding about a session that went on beside another party's.
func (u *use) finding(device string, a *openSession, at time.Time) countersign.Finding {
	b, n := a.crossed, 0
	for i := range u.parties {
		for _, o := range u.parties[i].open {
			n += max(o.more, 1)
		}
	}
	from, _, _ := source(a.remote)
	to, _, _ := source(b.remote)
	return countersign.Finding{
		At: at, Subject: deviceSubject(device), Device: device, Fleet: b.fleet, Cert: u.cert, Remote: b.remote,
		Summary: "The credential of " + device + " is in use from " + from.Addr().String() + " and " + to.Addr().String() + " at the same time.",
		Evidence: map[string]string{
			"address_1": a.remote, "client_id_1": a.client, "since_1": stamp(a.at), "session_1": a.id, "via_1": a.via,
			"address_2": b.remote, "client_id_2": b.client, "since_2": stamp(b.at), "session_2": b.id, "via_2": b.via,
			"sessions": strconv.Itoa(n), "credential": u.cred,
		},
		Events: []int64{a.seq, b.seq},
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
