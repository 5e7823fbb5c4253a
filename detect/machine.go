package detect

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unique"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

const (
	// maxDevices bounds the devices that each rule remembers. The most expensive rule
	// needs about 700 octets for a device, and at most 25,000 for one that floods: see
	// holders.
	maxDevices = 200_000
	// maxSources bounds the addresses that each rule remembers, because an attacker can
	// have any number of them.
	maxSources = 50_000
	// memory is how long detectors remember, and so how much of the log is read again
	// after a restart. It is enough for a device that connects once a week.
	memory = 7 * 24 * time.Hour
)

// found is a finding with its identity, by which it is handed over only once: the event
// that completed it or, if no event did, the time.
type found struct {
	countersign.Finding
	seq int64
	due time.Time
}

// machine is all detectors. Its state depends only on the events and times that it was
// passed: it has no clock and reads no database.
type machine struct {
	rules map[string]*Rule
	// recordedAs maps the types of events that are a finding by themselves to their rules.
	recordedAs map[countersign.EventType]string
	usual      func(fleet string) countersign.Usual
	holders    holders
	clients    clients
	profile    profiles
	crowd      crowds
	door       door
	topics     topicBursts
	enroll     enrollments
	limits     limits
	masses     masses
	out        []found
}

func newMachine(usual func(fleet string) countersign.Usual) *machine {
	m := &machine{rules: map[string]*Rule{}, recordedAs: recordedAs(), usual: usual}
	for _, r := range Rules() {
		m.rules[r.Name] = &r
	}
	m.holders.init(m)
	m.clients.init(m)
	m.profile.init(m)
	m.crowd.init(m)
	m.door.init(m)
	m.topics.init(m)
	m.enroll.init(m)
	m.limits.init(m)
	m.masses.init()
	return m
}

// step processes the next event of the log and returns the findings that it completes.
func (m *machine) step(e *countersign.Event) []found {
	m.out = nil
	m.holders.elapse(e.At)
	switch e.Type {
	case countersign.SessionOpened:
		m.opened(e)
	case countersign.SessionClosed:
		m.holders.closed(e)
		m.clients.closed(e)
	case countersign.ConnectRefused:
		m.door.connection(e)
	case countersign.EnrollRefused:
		m.door.enrollment(e)
	case countersign.TopicDenied:
		m.topics.denied(e)
	case countersign.BudgetExceeded:
		m.limits.exceeded(e)
		if e.Data["budget"] == eventsBudget {
			m.holders.lostOf(e.Device) // the end of a session may be missing in the log
		}
	case countersign.OperatorRefused:
		m.limits.refusedOperator(e)
	case countersign.CertIssued, countersign.CertAccepted:
		m.profile.issued(e)
		m.enroll.issued(e)
	case countersign.DeviceRevoked, countersign.DeviceRetiredEv:
		m.profile.forget(e.Device)
	case countersign.ServerStarted:
		m.holders.restarted(e.Data["node"])
	case countersign.EventsSuppressed:
		m.holders.lost()
		m.recorded(e)
	default:
		m.recorded(e)
	}
	return m.out
}

// elapse advances the time without an event and returns the findings that are due.
func (m *machine) elapse(now time.Time) []found {
	m.out = nil
	m.holders.elapse(now)
	return m.out
}

// opened handles the start of a device's session. It ignores guests and operators.
func (m *machine) opened(e *countersign.Event) {
	if !isDevice(e.Device) {
		return
	}
	share(e)
	m.holders.opened(e)
	m.clients.opened(e)
	m.crowd.opened(e, m.profile.opened(e))
}

// share replaces the strings that many events have in common, and that the detectors
// remember, by one copy, to save memory.
func share(e *countersign.Event) {
	for _, s := range []*string{&e.Fleet, &e.Via, &e.Cert.Issuer} {
		*s = unique.Make(*s).Value()
	}
	for _, name := range []string{"hello", "software", "protocol", "node"} {
		if v, ok := e.Data[name]; ok {
			e.Data[name] = unique.Make(v).Value()
		}
	}
}

// report emits a finding that event e completed.
func (m *machine) report(r *Rule, e *countersign.Event, f countersign.Finding) {
	f.At, f.Fleet = e.At, e.Fleet
	if f.Remote == "" {
		f.Remote = e.Remote
	}
	if f.Cert.IsZero() {
		f.Cert = e.Cert
	}
	if len(f.Events) == 0 {
		f.Events = []int64{e.Seq}
	}
	m.emit(r, found{Finding: f, seq: e.Seq})
}

// emit completes a finding from its rule and adds it to the output, unless it is grouped
// with others of its kind.
func (m *machine) emit(r *Rule, f found) {
	f.Rule = r.Name
	if f.Severity == "" {
		f.Severity = r.Severity
	}
	maps.DeleteFunc(f.Evidence, func(_, v string) bool { return v == "" })
	if m.masses.pass(&f) {
		m.out = append(m.out, f)
	}
}

// source returns the prefix that counts as one address: an IPv4 address or an IPv6 /64.
// provider is a wider network, within which one device may move: an IPv4 /16 or IPv6 /32.
func source(remote string) (addr, provider netip.Prefix, ok bool) {
	ap, err := netip.ParseAddrPort(remote)
	a := ap.Addr()
	if err != nil {
		if a, err = netip.ParseAddr(remote); err != nil {
			return addr, provider, false
		}
	}
	if addr, ok = countersign.SourceOf(a); !ok {
		return addr, provider, false
	}
	provider, err = addr.Addr().Prefix(addr.Bits() / 2)
	return addr, provider, err == nil
}

// isDevice reports whether the subject of a session is a device, and not a guest or an
// operator.
func isDevice(id string) bool { return id != "" && !strings.Contains(id, "/") }

func deviceSubject(id string) string { return "device:" + id }

func addressSubject(p netip.Prefix) string { return "address:" + p.String() }

// tally returns how many events one event of the log represents, because repeats are not
// all recorded.
func tally(e *countersign.Event) int {
	n, err := strconv.Atoi(e.Data["more_before"])
	if err != nil || n < 0 {
		return 1
	}
	return n + 1
}

const (
	// massAfter is how many findings of one rule in one fleet within massWindow are
	// reported one by one. More of them probably have one cause, so they are one finding
	// of the fleet, which is reported again at each ten times as many.
	massAfter  = 20
	massWindow = 10 * time.Minute
	maxMasses  = 10_000
)

// masses groups findings that many devices have at once. Findings of high and critical
// severity are never grouped, because each needs an action of its own.
type masses struct {
	by lockout.Table[[2]string, mass]
}

type mass struct {
	since time.Time
	count int
	next  int // the count at which the fleet's finding is reported again
}

func (s *masses) init() { s.by = lockout.Table[[2]string, mass]{Max: maxMasses, TTL: massWindow} }

func (s *masses) pass(f *found) bool {
	if f.Severity.Rank() >= countersign.SeverityHigh.Rank() || strings.HasPrefix(f.Subject, "fleet:") {
		return true
	}
	at := f.At
	m, _ := s.by.Touch([2]string{f.Rule, f.Fleet}, at)
	if at.Sub(m.since) > massWindow {
		*m = mass{since: at, next: massAfter + 1}
	}
	m.count++
	if m.count <= massAfter {
		return true
	}
	if m.count < m.next {
		return false
	}
	m.next = m.count / (massAfter + 1) * 10 * (massAfter + 1)
	f.Evidence = maps.Clone(f.Evidence)
	if f.Evidence == nil {
		f.Evidence = map[string]string{}
	}
	f.Evidence["findings"], f.Evidence["last"] = strconv.Itoa(m.count), f.Subject
	f.Summary = strconv.Itoa(m.count) + " findings of this kind within " + span(massWindow) + "; the last: " + f.Summary
	f.Subject = "server"
	if f.Fleet != "" {
		f.Subject = "fleet:" + f.Fleet
	}
	f.Device, f.Cert = "", countersign.CertRef{}
	return true
}

// span formats a duration for people.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour && d%(24*time.Hour) == 0:
		return strconv.Itoa(int(d/(24*time.Hour))) + " days"
	case d >= time.Hour && d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + " h"
	case d >= time.Minute:
		return strconv.Itoa(int(d/time.Minute)) + " min"
	}
	return strconv.Itoa(int(d/time.Second)) + " s"
}

// join lists the words for evidence, sorted and each once, at most ten.
func join(words []string) string {
	slices.Sort(words)
	const most = 10
	words = slices.Compact(words)
	if len(words) > most {
		return strings.Join(words[:most], ", ") + ", and " + strconv.Itoa(len(words)-most) + " more"
	}
	return strings.Join(words, ", ")
}
