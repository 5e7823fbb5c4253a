package policy

import (
	"slices"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

// plan is the part of a policy for one kind of client, sorted by the lists of a
// session, so that a connection costs little more than its own filters.
type plan struct {
	connect []*Statement // that deny, then that allow
	lists   []list
	uses    []use
}

// list is one list of filters. Actions with the same statements share it.
type list struct {
	effect     Effect
	statements []*Statement
	fixed      []string // the list itself, if it has no variable
	size       int
}

// use is the list that an action uses.
type use struct {
	action Action
	list   int
}

func (p *Policy) compile() {
	p.plans = map[Kind]*plan{}
	for _, kind := range kinds {
		pl := &plan{}
		for _, effect := range []Effect{Deny, Allow} {
			pl.connect = append(pl.connect, p.about(kind, effect, Connect)...)
			for _, action := range topical {
				if about := p.about(kind, effect, action); len(about) > 0 {
					pl.use(action, effect, about)
				}
			}
		}
		p.plans[kind] = pl
	}
}

// about returns the statements on an action of a kind of client.
func (p *Policy) about(kind Kind, effect Effect, action Action) []*Statement {
	var found []*Statement
	for i := range p.Statements {
		s := &p.Statements[i]
		if s.Effect == effect && slices.Contains(s.For, kind) && slices.Contains(s.Actions, action) {
			found = append(found, s)
		}
	}
	return found
}

func (pl *plan) use(action Action, effect Effect, about []*Statement) {
	i := slices.IndexFunc(pl.lists, func(l list) bool { return l.effect == effect && slices.Equal(l.statements, about) })
	if i < 0 {
		i = len(pl.lists)
		l := list{effect: effect, statements: about}
		fixed := true
		for _, s := range about {
			l.size += len(s.Topics)
			fixed = fixed && !slices.ContainsFunc(s.Topics, func(p Pattern) bool { return len(p.vars) > 0 })
		}
		if fixed {
			l.fixed = slices.Clip(l.expand(&Subject{})) // append to it makes a copy
		}
		pl.lists = append(pl.lists, l)
	}
	pl.uses = append(pl.uses, use{action, i})
}

func (l *list) expand(s *Subject) []string {
	if l.fixed != nil {
		return l.fixed
	}
	filters := make([]string, 0, l.size*max(1, len(s.Scope)))
	for _, st := range l.statements {
		for i := range st.Topics {
			filters = st.Topics[i].filters(filters, s, l.effect)
		}
	}
	if len(filters) == 0 {
		return nil
	}
	return filters
}

// Permissions returns what the policy allows the subject within a session. If connect
// is not allowed, there is no session, and why is the reason. The lists may be shared:
// do not write to them.
func (p *Policy) Permissions(s Subject) (perms countersign.Permissions, connect bool, why string) {
	pl := p.plans[s.Kind]
	if pl == nil {
		return perms, false, "the policy has no such kind of client"
	}
	if found := pl.mayConnect(&s, s.ClientID); !found.allowed() {
		return perms, false, found.decision(&s, Connect, s.ClientID).Why
	}
	var room [2 * len(topical)][]string
	lists := room[:0]
	for i := range pl.lists {
		lists = append(lists, pl.lists[i].expand(&s))
	}
	for _, u := range pl.uses {
		f := filtersOf(&perms, u.action)
		if pl.lists[u.list].effect == Allow {
			f.Allow = lists[u.list]
		} else {
			f.Deny = lists[u.list]
		}
	}
	return perms, true, ""
}

// Loses reports whether a session with the permissions was would lose something with
// now instead. It reports true when in doubt.
func Loses(was, now countersign.Permissions) bool {
	for _, action := range topical {
		before, after := filtersOf(&was, action), filtersOf(&now, action)
		if slices.ContainsFunc(before.Allow, func(f string) bool { return !covered(after.Allow, f) }) {
			return true
		}
		if slices.ContainsFunc(after.Deny, func(f string) bool { return !covered(before.Deny, f) && touches(before.Allow, f) }) {
			return true
		}
	}
	return false
}

func covered(by []string, filter string) bool {
	return slices.ContainsFunc(by, func(f string) bool { return topics.Covers(f, filter) })
}

func touches(list []string, filter string) bool {
	return slices.ContainsFunc(list, func(f string) bool { return topics.Overlap(f, filter) })
}
