package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign/topics"
)

// Decision is the answer to one question, with its reason.
type Decision struct {
	Allowed   bool
	Statement string // the id of the one that decided; empty: none did, or none was needed
	Line      int
	Pattern   string // the topic or client of it that decided, as written
	As        string // and expanded for the subject
	Why       string // one sentence
}

// finding is the statement and pattern that decide.
type finding struct {
	statement *Statement
	pattern   *Pattern // nil: the statement has no clients, so it applies to any
	as        string
}

func (f *finding) allowed() bool { return f.statement != nil && f.statement.Effect == Allow }

func (f *finding) decision(s *Subject, action Action, topic string) Decision {
	what := fmt.Sprintf("%s %q", action, clip(topic))
	if action == Connect {
		what = fmt.Sprintf("connect with client id %q", clip(topic))
	}
	if f.statement == nil {
		return Decision{Why: fmt.Sprintf("no statement allows %s to %s", one[s.Kind], what)}
	}
	d := Decision{Allowed: f.allowed(), Statement: f.statement.ID, Line: f.statement.Line, Why: "denies"}
	if d.Allowed {
		d.Why = "allows"
	}
	d.Why = fmt.Sprintf("statement %s (line %d) %s it", f.statement.ID, f.statement.Line, d.Why)
	if f.pattern != nil {
		d.Line, d.Pattern, d.As = f.pattern.Line, f.pattern.Text, f.as
		d.Why += " with " + clip(f.pattern.Text)
		if f.as != f.pattern.Text {
			d.Why += ", here " + clip(f.as)
		}
	}
	return d
}

// one names a client of each kind in a sentence.
var one = map[Kind]string{Devices: "a device", Guests: "a guest", Apps: "an app"}

// clip truncates an external text in a sentence.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 200)], "") }

// mayConnect finds the statement that decides on a client identifier.
func (pl *plan) mayConnect(s *Subject, id string) finding {
	var room [4]string
	for _, st := range pl.connect {
		if len(st.Clients) == 0 {
			return finding{statement: st}
		}
		for i := range st.Clients {
			for _, pattern := range st.Clients[i].clients(room[:0], s, st.Effect) {
				if matchClient(pattern, id) {
					return finding{st, &st.Clients[i], pattern}
				}
			}
		}
	}
	return finding{}
}

// mayAct finds the statement that decides on a topic, or on a filter to subscribe to.
func (pl *plan) mayAct(s *Subject, action Action, topic string) finding {
	var room [4]string
	for _, u := range pl.uses { // those that deny come first
		if u.action != action {
			continue
		}
		l := &pl.lists[u.list]
		decides := topics.Overlap
		if l.effect == Allow {
			decides = topics.Covers
		}
		for _, st := range l.statements {
			for i := range st.Topics {
				for _, filter := range st.Topics[i].filters(room[:0], s, l.effect) {
					if decides(filter, topic) {
						return finding{st, &st.Topics[i], filter}
					}
				}
			}
		}
	}
	return finding{}
}

// Explain decides on one act of the subject, and returns what decided. topic is a
// topic name, a filter for subscribe, or a client identifier for connect, where
// empty is the subject's own. The server also binds client identifiers to devices,
// which no policy can widen and Explain does not check.
func (p *Policy) Explain(s Subject, action Action, topic string) Decision {
	pl := p.plans[s.Kind]
	if pl == nil {
		return Decision{Why: "the policy has no such kind of client"}
	}
	if action == Connect {
		if topic == "" {
			topic = s.ClientID
		}
		found := pl.mayConnect(&s, topic)
		return found.decision(&s, action, topic)
	}
	if !slices.Contains(topical[:], action) {
		return Decision{Why: fmt.Sprintf("there is no action %.40q", string(action))}
	}
	topic, why := judged(action, topic)
	if why != "" {
		return Decision{Why: why}
	}
	if action == Retain { // it is a kind of publication
		if d := p.Explain(s, Publish, topic); !d.Allowed {
			d.Why = "what is retained is published first: " + d.Why
			return d
		}
	}
	found := pl.mayAct(&s, action, topic)
	return found.decision(&s, action, topic)
}

// judged returns what is compared with filters, or why no filter can allow it.
func judged(action Action, topic string) (inner, why string) {
	if action != Subscribe {
		switch {
		case !topics.ValidName(topic):
			return "", fmt.Sprintf("%q is not a topic name", clip(topic))
		case strings.HasPrefix(topic, "$"):
			return "", "topics that begin with $ are the broker's own"
		}
		return topic, ""
	}
	inner, _, ok := topics.Shared(topic)
	switch {
	case !ok || !topics.ValidFilter(inner):
		return "", fmt.Sprintf("%q is not a topic filter", clip(topic))
	case strings.HasPrefix(inner, "$"):
		return "", "topics that begin with $ are the broker's own"
	}
	return inner, ""
}

// SpeaksOf reports whether the policy has a variable whose name begins with prefix: if
// not, no decision depends on it.
func (p *Policy) SpeaksOf(prefix string) bool {
	return slices.ContainsFunc(p.Statements, func(s Statement) bool {
		return slices.ContainsFunc(slices.Concat(s.Topics, s.Clients), func(t Pattern) bool {
			return slices.ContainsFunc(t.vars, func(v variable) bool { return strings.HasPrefix(v.name, prefix) })
		})
	})
}
