package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

// The audit checks that a warning belongs to, with the names of AWS IoT Device
// Defender.
const (
	OverlyPermissive = "IOT_POLICY_OVERLY_PERMISSIVE_CHECK"
	Misconfiguration = "IOT_POLICY_POTENTIAL_MISCONFIGURATION_CHECK"
)

// The codes of warnings. They are stable.
const (
	AllTopics               = "all_topics"                // one filter allows everything
	PublishUnbound          = "publish_unbound"           // one device can publish as another
	PublishShared           = "publish_shared"            // the publisher of a message cannot be known
	SubscribeUnbound        = "subscribe_unbound"         // one device can read messages for another
	GuestReach              = "guest_reach"               // a guest reaches the topics of devices
	AppUnbound              = "app_unbound"               // an app reaches devices beyond its scope
	WildcardInsideLevel     = "wildcard_inside_level"     // * and ? are no wildcards of MQTT
	WildcardInClient        = "wildcard_in_client"        // + and # are none of client ids
	DenyWithoutEffect       = "deny_without_effect"       // it denies what no statement allows
	VariableWithoutValue    = "variable_without_value"    // the kind of client never has it
	SubscribeWithoutReceive = "subscribe_without_receive" // it can subscribe and receives nothing
	RetainWithoutPublish    = "retain_without_publish"    // what may not be published cannot be retained
	NobodyConnects          = "nobody_connects"           // no device can connect
	NoTests                 = "no_tests"                  // no test checks the next change
)

// Warning is about a part of a document that is well formed but perhaps a mistake.
type Warning struct {
	Code      string
	Check     string // OverlyPermissive, Misconfiguration, or empty where it is of neither
	Severity  countersign.Severity
	Statement string // empty: of the whole document
	Line      int
	Column    int
	Message   string
}

// inbox is where answers to sessions are published. Its names cannot be guessed, so a
// filter for all of them is not broad.
const inbox = "_inbox/"

// somewhere is a topic space of a device that no document names.
const somewhere = "devices/a device that is not named/#"

// Lint returns warnings about what is overly permissive in the document, or probably not
// what its author meant.
func (p *Policy) Lint() []Warning {
	l := linter{p: p}
	for i := range p.Statements {
		s := &p.Statements[i]
		for j := range s.Topics {
			l.form(s, &s.Topics[j])
			for _, kind := range s.For {
				if s.Effect == Allow {
					l.breadth(s, &s.Topics[j], kind)
					l.partner(s, &s.Topics[j], kind)
				} else {
					l.purpose(s, &s.Topics[j], kind)
				}
			}
		}
		for j := range s.Clients {
			l.client(s, &s.Clients[j])
		}
	}
	if !slices.ContainsFunc(p.about(Devices, Allow, Connect), func(*Statement) bool { return true }) {
		l.add(Warning{Code: NobodyConnects, Check: Misconfiguration, Severity: countersign.SeverityHigh, Message: "no statement lets a device connect"})
	}
	if len(p.Tests) == 0 {
		l.add(Warning{Code: NoTests, Severity: countersign.SeverityInfo, Message: "there are no tests that check the next change"})
	}
	return l.list
}

type linter struct {
	p    *Policy
	list []Warning
}

// add adds a warning, unless there is one with the same code at the same place.
func (l *linter) add(w Warning) {
	if !slices.ContainsFunc(l.list, func(o Warning) bool {
		return o.Code == w.Code && o.Statement == w.Statement && o.Line == w.Line && o.Column == w.Column
	}) {
		l.list = append(l.list, w)
	}
}

func (l *linter) permissive(code string, s *Statement, p *Pattern, format string, args ...any) {
	severity := countersign.SeverityHigh
	if code == AllTopics || code == GuestReach {
		severity = countersign.SeverityCritical
	}
	l.add(Warning{code, OverlyPermissive, severity, s.ID, p.Line, p.Column, fmt.Sprintf(format, args...)})
}

func (l *linter) odd(code string, s *Statement, p *Pattern, format string, args ...any) {
	l.add(Warning{code, Misconfiguration, countersign.SeverityMedium, s.ID, p.Line, p.Column, fmt.Sprintf(format, args...)})
}

// bound reports whether the filter is different for each client of the kind.
func (p *Pattern) bound(kind Kind) bool {
	return slices.ContainsFunc(p.vars, func(v variable) bool {
		switch kind {
		case Devices:
			return v.name == "device.id" || v.name == "cert.subject.cn" || v.name == "client.id"
		case Apps:
			return v.name == "device"
		default: // a guest chooses its client id
			return false
		}
	})
}

// breadth looks for filters that allow more than one client's own.
func (l *linter) breadth(s *Statement, p *Pattern, kind Kind) {
	sends := slices.Contains(s.Actions, Publish) || slices.Contains(s.Actions, Retain)
	receives := slices.Contains(s.Actions, Subscribe) || slices.Contains(s.Actions, Receive)
	wild := strings.ContainsAny(strings.Join(p.lits, ""), "+#")
	reaches := topics.Overlap(p.wide, somewhere)
	switch {
	case strings.Trim(p.Text, "+/") == "#" || p.Text == "+":
		l.permissive(AllTopics, s, p, "%s matches every topic", p.Text)
	case strings.HasPrefix(p.Text, inbox) && !receives || p.bound(kind):
	case kind == Guests && reaches:
		l.permissive(GuestReach, s, p, "%s lets a guest reach the topics of devices", p.Text)
	case kind == Apps && reaches:
		l.permissive(AppUnbound, s, p, "%s reaches devices beyond the app's scope: use ${device}", p.Text)
	case kind != Devices:
	case sends && wild:
		l.permissive(PublishUnbound, s, p, "any device may publish %s, also as another device: use ${device.id}", p.Text)
	case sends:
		l.add(Warning{
			PublishShared, "", countersign.SeverityInfo, s.ID, p.Line, p.Column,
			fmt.Sprintf("many devices may publish %s, so the sender of a message there is not known", p.Text),
		})
	case wild && reaches:
		l.permissive(SubscribeUnbound, s, p, "any device may receive %s, also messages for another device: use ${device.id}", p.Text)
	}
}

// form finds characters that are not wildcards and variables that never have a value.
func (l *linter) form(s *Statement, p *Pattern) {
	if strings.ContainsAny(strings.Join(p.lits, ""), "*?") {
		l.odd(WildcardInsideLevel, s, p, "%s: * and ? are ordinary characters in a topic; MQTT has + for one level and # for the rest", p.Text)
	}
	l.values(s, p)
}

func (l *linter) values(s *Statement, p *Pattern) {
	for _, v := range p.vars {
		for _, kind := range s.For {
			if slices.Contains(v.kinds(), kind) {
				continue
			}
			then := "it allows nothing"
			if s.Effect == Deny {
				then = "it denies everything from there on"
			}
			l.odd(VariableWithoutValue, s, p, "${%s} never has a value for %s, so for them %s", v.name, kind, then)
		}
	}
}

func (l *linter) client(s *Statement, p *Pattern) {
	if strings.ContainsAny(strings.Join(p.lits, ""), "+#") {
		l.odd(WildcardInClient, s, p, "%s: + and # are ordinary characters in a client id; use * for any text and ? for one character", p.Text)
	}
	l.values(s, p)
}

// partner finds an action that is useless without another.
func (l *linter) partner(s *Statement, p *Pattern, kind Kind) {
	if slices.Contains(s.Actions, Subscribe) && !l.allows(kind, Receive, p) {
		l.odd(SubscribeWithoutReceive, s, p, "%s may be subscribed to, but nothing there may be received", p.Text)
	}
	if slices.Contains(s.Actions, Retain) && !l.allows(kind, Publish, p) {
		l.odd(RetainWithoutPublish, s, p, "%s may be retained, but not published", p.Text)
	}
}

// purpose finds a deny that overlaps nothing that is allowed.
func (l *linter) purpose(s *Statement, p *Pattern, kind Kind) {
	for _, a := range s.Actions {
		if a != Connect && l.allows(kind, a, p) {
			return
		}
	}
	if len(s.For) == 1 {
		l.odd(DenyWithoutEffect, s, p, "no allowed topic overlaps %s, so denying it has no effect", p.Text)
	}
}

// allows reports whether some statement allows the action on a topic that the pattern
// can mean.
func (l *linter) allows(kind Kind, a Action, p *Pattern) bool {
	return slices.ContainsFunc(l.p.about(kind, Allow, a), func(s *Statement) bool {
		return slices.ContainsFunc(s.Topics, func(o Pattern) bool { return topics.Overlap(o.wide, p.wide) })
	})
}
