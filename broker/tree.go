package broker

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/countersign-iot/countersign/topics"
)

// maxLevels bounds the levels of a topic filter and of a retained message's topic: the
// depth of the trees, and so the work of one look-up.
const maxLevels = 200

// subscription is one filter of a session. The tree's lock owns where it is; what it
// asks for never changes, since a new SUBSCRIBE makes a new one.
type subscription struct {
	Subscription
	s     *session
	n     int64 // of its row
	at    *node
	index int    // in at.subs, or in group.members
	group *group // nil: not shared
}

// group is a shared subscription (MQTT 5, 4.8.2).
type group struct {
	name    string
	members []*subscription
	turn    atomic.Uint32
}

// node is one level of the filters.
type node struct {
	up       *node
	level    string
	children map[string]*node
	subs     []*subscription
	groups   []*group
}

// tree holds the filters of all sessions by their levels. Publishing only reads it.
type tree struct {
	mu   sync.RWMutex
	root node
}

// add puts a subscription in.
func (t *tree) add(sub *subscription) {
	filter, name := sub.Filter, ""
	if inner, shared, _ := topics.Shared(filter); shared {
		name = strings.TrimSuffix(filter, inner)
		filter = inner
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := &t.root
	for level := range strings.SplitSeq(filter, "/") {
		next := n.children[level]
		if next == nil {
			next = &node{up: n, level: strings.Clone(level)}
			if n.children == nil {
				n.children = map[string]*node{}
			}
			n.children[next.level] = next
		}
		n = next
	}
	sub.at = n
	if name == "" {
		sub.index = len(n.subs)
		n.subs = append(n.subs, sub)
		return
	}
	for _, g := range n.groups {
		if g.name == name {
			sub.group = g
		}
	}
	if sub.group == nil {
		sub.group = &group{name: name}
		n.groups = append(n.groups, sub.group)
	}
	sub.index = len(sub.group.members)
	sub.group.members = append(sub.group.members, sub)
}

// replace puts a subscription in the place of old, which has the same filter, or in a
// new one if old is nil. No message meets both or none.
func (t *tree) replace(old, sub *subscription) {
	if old == nil || !t.swap(old, sub) {
		t.add(sub)
	}
}

func (t *tree) swap(old, sub *subscription) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old.at == nil {
		return false
	}
	sub.at, sub.index, sub.group = old.at, old.index, old.group
	if old.at = nil; sub.group != nil {
		sub.group.members[sub.index] = sub
	} else {
		sub.at.subs[sub.index] = sub
	}
	return true
}

// remove takes a subscription out, and the levels that nothing needs any more.
func (t *tree) remove(sub *subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := sub.at
	if n == nil {
		return
	}
	sub.at = nil
	list := &n.subs
	if sub.group != nil {
		list = &sub.group.members
	}
	last := len(*list) - 1
	(*list)[sub.index] = (*list)[last]
	(*list)[sub.index].index = sub.index
	(*list)[last] = nil
	*list = (*list)[:last]
	if last == 0 {
		*list = nil
	}
	if sub.group != nil && last == 0 {
		for i, g := range n.groups {
			if g == sub.group {
				n.groups = append(n.groups[:i:i], n.groups[i+1:]...)
				break
			}
		}
	}
	for n.up != nil && len(n.subs)+len(n.groups)+len(n.children) == 0 {
		delete(n.up.children, n.level)
		n = n.up
	}
}

// hits are the subscriptions that match a topic.
type hits struct {
	subs  []*subscription
	nodes int // how many filters they belong to; with one no session is there twice
}

// match finds the subscriptions of a topic, one member of each group among them.
func (t *tree) match(topic string, h *hits) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	h.walk(&t.root, topic, strings.HasPrefix(topic, "$"))
}

// walk matches the rest of a topic below n. hidden: it is the first level of a topic
// that begins with $, which no wildcard matches, [MQTT-4.7.2-1].
func (h *hits) walk(n *node, rest string, hidden bool) {
	level, rest, more := strings.Cut(rest, "/")
	if !hidden {
		if m := n.children["#"]; m != nil {
			h.take(m)
		}
		if m := n.children["+"]; m != nil {
			h.descend(m, rest, more)
		}
	}
	if m := n.children[level]; m != nil {
		h.descend(m, rest, more)
	}
}

func (h *hits) descend(n *node, rest string, more bool) {
	if more {
		h.walk(n, rest, false)
		return
	}
	h.take(n)
	if m := n.children["#"]; m != nil { // "a/#" matches "a" (MQTT 5, 4.7.1.2)
		h.take(m)
	}
}

func (h *hits) take(n *node) {
	if len(n.subs)+len(n.groups) == 0 {
		return
	}
	h.nodes++
	h.subs = append(h.subs, n.subs...)
	for _, g := range n.groups {
		h.subs = append(h.subs, g.choose())
	}
}

// choose returns the member whose turn it is: the next one with a connection, or the
// next one at all.
func (g *group) choose() *subscription {
	n := uint32(len(g.members)) //nolint:gosec // far fewer
	first := g.turn.Add(1)
	for i := range n {
		if m := g.members[(first+i)%n]; m.s.live.Load() {
			if i > 0 { // or it has the turns of those that are away, too
				g.turn.Add(i)
			}
			return m
		}
	}
	return g.members[first%n]
}

// members returns the members of the group of a shared subscription, those with a
// connection first.
func (t *tree) members(sub *subscription) []*subscription {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var first, last []*subscription
	for _, m := range sub.group.members {
		if m.s.live.Load() {
			first = append(first, m)
		} else {
			last = append(last, m)
		}
	}
	return append(first, last...)
}

// levels counts the levels of a topic or filter.
func levels(topic string) int { return strings.Count(topic, "/") + 1 }
