package detect

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

// maxFleets bounds the fleets that are remembered. It is large, because operators create
// fleets by hand.
const maxFleets = 10_000

// enrollments watches when, and from which address, first certificates are issued, for the
// rule unusual_enrollment.
type enrollments struct {
	m    *machine
	rule *Rule
	by   lockout.Table[string, enrollSeries]
}

// enrollSeries is a series of unusual enrollments in one fleet.
type enrollSeries struct {
	since time.Time
	count int
	next  int
}

func (n *enrollments) init(m *machine) {
	n.m, n.rule = m, m.rules[UnusualEnrollment]
	n.by = lockout.Table[string, enrollSeries]{Max: maxFleets, TTL: lasts(n.rule)}
}

func (n *enrollments) issued(e *countersign.Event) {
	if !first(e) || e.Device == "" {
		return
	}
	why := unusual(n.m.usual(e.Fleet), e)
	if why == "" {
		return
	}
	s, _ := n.by.Touch(e.Fleet, e.At)
	if e.At.Sub(s.since) >= n.rule.Again {
		*s = enrollSeries{since: e.At, next: n.rule.Threshold}
	}
	s.count++
	if s.count < s.next {
		return
	}
	s.next *= 10
	n.m.report(n.rule, e, countersign.Finding{
		Subject: "fleet:" + e.Fleet, Device: e.Device, Summary: e.Device + " enrolled in fleet " + e.Fleet + " " + why + ".",
		Evidence: map[string]string{
			"device": e.Device, "address": e.Remote, "at": stamp(e.At), "method": e.Data["method"], "evidence": e.Data["evidence"],
			"via": e.Via, "enrollments": strconv.Itoa(s.count), "since": stamp(s.since),
		},
	})
}

// unusual returns what is unusual about an enrollment; empty if nothing is.
func unusual(u countersign.Usual, e *countersign.Event) string {
	ap, err := netip.ParseAddrPort(e.Remote)
	if err == nil && !countersign.Contains(u.Networks, ap.Addr()) {
		return "from outside of the fleet's networks"
	}
	if from, to, ok := hours(u.Hours); ok && !within(from, to, e.At.UTC().Hour()) {
		return "outside of the fleet's hours, " + u.Hours + " UTC"
	}
	return ""
}

// hours parses hours such as 06-20: from 06:00 until before 20:00. 22-04 includes midnight.
func hours(s string) (from, to int, ok bool) {
	a, b, found := strings.Cut(s, "-")
	from, err1 := strconv.Atoi(strings.TrimSpace(a))
	to, err2 := strconv.Atoi(strings.TrimSpace(b))
	return from, to, found && err1 == nil && err2 == nil && from >= 0 && from < 24 && to >= 0 && to <= 24 && from != to
}

func within(from, to, hour int) bool {
	if from < to {
		return hour >= from && hour < to
	}
	return hour >= from || hour < to
}

// topicBursts counts refused publications and subscriptions, for the rule denied_topics.
type topicBursts struct {
	m    *machine
	rule *Rule
	by   lockout.Table[string, denials]
}

type denials struct {
	burst  burst
	topics []string // the latest distinct ones
}

// maxTopics bounds the topics that are kept for evidence.
const maxTopics = 5

func (t *topicBursts) init(m *machine) {
	t.m, t.rule = m, m.rules[DeniedTopics]
	t.by = lockout.Table[string, denials]{Max: maxDevices, TTL: lasts(t.rule)}
}

func (t *topicBursts) denied(e *countersign.Event) {
	subject, device := deviceSubject(e.Device), e.Device
	if kind, _, other := strings.Cut(device, "/"); other {
		subject, device = string(e.Actor), ""
		if addr, _, ok := source(e.Remote); ok && kind == "guest" { // a guest has a new name at each connection
			subject = addressSubject(addr)
		}
	}
	d, _ := t.by.Touch(subject, e.At)
	d.topics = latest(d.topics, e.Data["action"]+" "+clip(e.Data["topic"]), maxTopics)
	if !d.burst.add(t.rule, hit{at: e.At, seq: e.Seq}) {
		return
	}
	t.m.report(t.rule, e, countersign.Finding{
		Subject: subject, Device: device, Events: d.burst.seqs(),
		Summary:  string(e.Actor) + " keeps trying to use topics that it has no permission for.",
		Evidence: map[string]string{"acts": join(d.topics), "address": e.Remote, "via": e.Via},
	})
}
