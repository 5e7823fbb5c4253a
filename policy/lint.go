package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

// The audit checks that a warning belongs to, by the names that AWS IoT Device
// Defender has for them.
const (
	OverlyPermissive = "IOT_POLICY_OVERLY_PERMISSIVE_CHECK"
	Misconfiguration = "IOT_POLICY_POTENTIAL_MISCONFIGURATION_CHECK"
)

// The codes of warnings. They are stable.
const (
	AllTopics               = "all_topics"                // one filter allows everything
	PublishUnbound          = "publish_unbound"           // one device can speak as another
	PublishShared           = "publish_shared"            // nobody can tell who published there
	SubscribeUnbound        = "subscribe_unbound"         // one device can read what is another's
	GuestReach              = "guest_reach"               // a guest reaches the topics of devices
	AppUnbound              = "app_unbound"               // an app reaches devices beyond its scope
	WildcardInsideLevel     = "wildcard_inside_level"     // * and ? are no wildcards of MQTT
	WildcardInClient        = "wildcard_in_client"        // + and # are none of client ids
	DenyWithoutEffect       = "deny_without_effect"       // it denies what nothing allows
	VariableWithoutValue    = "variable_without_value"    // the kind of client never has it
	SubscribeWithoutReceive = "subscribe_without_receive" // it subscribes and hears nothing
	RetainWithoutPublish    = "retain_without_publish"    // what may not be published cannot be retained
	NobodyConnects          = "nobody_connects"           // no device comes in
	NoTests                 = "no_tests"                  // nothing guards the next change
)

// Warning is something in a document that is well formed and perhaps unwise.
type Warning struct {
	Code      string
	Check     string // OverlyPermissive, Misconfiguration, or empty where it is of neither
	Severity  countersign.Severity
	Statement string // empty: of the whole document
	Line      int
	Column    int
	Message   string
}

// inbox is where answers to sessions go. Its names cannot be guessed, so to publish
// below all of them is not broad.
const inbox = "_inbox/"

// somewhere is a topic space of a device that no document names.
const somewhere = "devices/a device that is not named/#"

// Lint tells what is overly permissive in the document, or not what its author can
// have meant.
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
		l.add(Warning{Code: NoTests, Severity: countersign.SeverityInfo, Message: "there are no tests: nothing guards the next change"})
	}
	return l.list
}

type linter struct {
	p    *Policy
	list []Warning
}

// add keeps a warning, one of a code at a place.
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

// bound reports whether the filter is another one for each client of the kind.
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
	hears := slices.Contains(s.Actions, Subscribe) || slices.Contains(s.Actions, Receive)
	wild := strings.ContainsAny(strings.Join(p.lits, ""), "+#")
	reaches := topics.Overlap(p.wide, somewhere)
	switch {
	case strings.Trim(p.Text, "+/") == "#" || p.Text == "+":
		l.permissive(AllTopics, s, p, "%s is every topic there is", p.Text)
	case strings.HasPrefix(p.Text, inbox) && !hears || p.bound(kind):
	case kind == Guests && reaches:
		l.permissive(GuestReach, s, p, "%s lets a guest reach the topics of devices", p.Text)
	case kind == Apps && reaches:
		l.permissive(AppUnbound, s, p, "%s reaches devices beyond the app's scope: use ${device}", p.Text)
	case kind != Devices:
	case sends && wild:
		l.permissive(PublishUnbound, s, p, "any device may publish %s, also in another's name: use ${device.id}", p.Text)
	case sends:
		l.add(Warning{
			PublishShared, "", countersign.SeverityInfo, s.ID, p.Line, p.Column,
			fmt.Sprintf("many devices may publish %s, so a message there does not tell who sent it", p.Text),
		})
	case wild && reaches:
		l.permissive(SubscribeUnbound, s, p, "any device may hear %s, also what is meant for another: use ${device.id}", p.Text)
	}
}

// form looks for what is no wildcard and for variables that never have a value.
func (l *linter) form(s *Statement, p *Pattern) {
	if strings.ContainsAny(strings.Join(p.lits, ""), "*?") {
		l.odd(WildcardInsideLevel, s, p, "%s: * and ? stand for themselves in a topic; MQTT has + for one level and # for the rest", p.Text)
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
		l.odd(WildcardInClient, s, p, "%s: + and # stand for themselves in a client id; use * for any text and ? for one character", p.Text)
	}
	l.values(s, p)
}

// partner looks for an action that is of no use without another.
func (l *linter) partner(s *Statement, p *Pattern, kind Kind) {
	if slices.Contains(s.Actions, Subscribe) && !l.allows(kind, Receive, p) {
		l.odd(SubscribeWithoutReceive, s, p, "%s may be subscribed to, but nothing there may be received", p.Text)
	}
	if slices.Contains(s.Actions, Retain) && !l.allows(kind, Publish, p) {
		l.odd(RetainWithoutPublish, s, p, "%s may be retained, but not published", p.Text)
	}
}

// purpose looks for a deny that takes nothing from what is allowed.
func (l *linter) purpose(s *Statement, p *Pattern, kind Kind) {
	for _, a := range s.Actions {
		if a != Connect && l.allows(kind, a, p) {
			return
		}
	}
	if len(s.For) == 1 {
		l.odd(DenyWithoutEffect, s, p, "nothing that is allowed touches %s, so to deny it changes nothing", p.Text)
	}
}

// allows reports whether some statement allows the action on a topic that the pattern
// can mean.
func (l *linter) allows(kind Kind, a Action, p *Pattern) bool {
	return slices.ContainsFunc(l.p.about(kind, Allow, a), func(s *Statement) bool {
		return slices.ContainsFunc(s.Topics, func(o Pattern) bool { return topics.Overlap(o.wide, p.wide) })
	})
}
