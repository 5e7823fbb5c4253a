package broker

import (
	"strings"
	"sync"
	"time"
)

// retainedNode is one level of the topics of retained messages.
type retainedNode struct {
	up       *retainedNode
	level    string
	children map[string]*retainedNode
	m        *Message // on record
	a        *account // that m is counted in
	next     *Message // on its way there; empty: the end of m
}

// retained holds the retained messages of the node by the levels of their topics.
type retained struct {
	mu    sync.RWMutex
	root  retainedNode
	order uint32 // of the newest
}

func (r *retained) find(topic string, create bool) *retainedNode {
	n := &r.root
	for level := range strings.SplitSeq(topic, "/") {
		next := n.children[level]
		if next == nil {
			if !create {
				return nil
			}
			next = &retainedNode{up: n, level: strings.Clone(level)}
			if n.children == nil {
				n.children = map[string]*retainedNode{}
			}
			n.children[next.level] = next
		}
		n = next
	}
	return n
}

// get returns the retained message of a topic, nil if there is none.
func (r *retained) get(topic string) *Message {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if n := r.find(topic, false); n != nil {
		return n.shown()
	}
	return nil
}

// newer reports whether m was announced after other. The numbers may go over their end.
func (m *Message) newer(other *Message) bool { return int32(m.order-other.order) > 0 } //nolint:gosec // it is meant to be negative

// shown is what subscribers get: they see what is on its way to the record, since one
// who subscribes after it was routed would get neither the message nor, later, its end.
func (n *retainedNode) shown() *Message {
	switch {
	case n.next == nil:
		return n.m
	case len(n.next.Payload) == 0:
		return nil
	}
	return n.next
}

// announce shows a message that is to be recorded, and before it is routed. It reports
// whether there is anything to be recorded: not where nothing is, and so nothing ends.
func (r *retained) announce(m *Message) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	ends := len(m.Payload) == 0
	n := r.find(m.Topic, !ends)
	if ends && (n == nil || n.m == nil && n.next == nil || m.QoS == 0 && n.next != nil && len(n.next.Payload) == 0) {
		return false
	}
	r.order++
	m.order, n.next = r.order, m
	return true
}

// set makes m, which is on record, the retained message of its topic, or ends that if m
// is empty. It returns the older one and whose it was.
func (r *retained) set(m *Message, a *account) (old *Message, owner *account) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.find(m.Topic, true)
	old, owner = n.m, n.a
	if n.m, n.a = m, a; len(m.Payload) == 0 {
		n.m, n.a = nil, nil
	}
	if n.next == m {
		n.next = nil
	}
	n.prune()
	return old, owner
}

// awaits reports that m is on its way to the record, and none that is newer.
func (r *retained) awaits(m *Message) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := r.find(m.Topic, false)
	return n != nil && n.next == m
}

// cancel ends what announce began: m is not on record.
func (r *retained) cancel(m *Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.find(m.Topic, false); n != nil && n.next == m {
		n.next = nil
		n.prune()
	}
}

// drop removes m if it is still the retained message of its topic.
func (r *retained) drop(m *Message) (owner *account, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.find(m.Topic, false)
	if n == nil || n.m != m {
		return nil, false
	}
	owner, n.m, n.a = n.a, nil, nil
	n.prune()
	return owner, true
}

// prune removes levels that nothing needs any more.
func (n *retainedNode) prune() {
	for n.up != nil && n.m == nil && n.next == nil && len(n.children) == 0 {
		delete(n.up.children, n.level)
		n = n.up
	}
}

// expired returns the messages that have expired at now.
func (r *retained) expired(now time.Time) (found []*Message) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, m := range r.root.all(false, nil) {
		if !m.Expires.IsZero() && !now.Before(m.Expires) {
			found = append(found, m)
		}
	}
	return found
}

// match returns the retained messages that a filter matches, in no order.
func (r *retained) match(filter string) (found []*Message) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.root.walk(filter, true, found)
}

func (n *retainedNode) walk(filter string, first bool, found []*Message) []*Message {
	level, rest, more := strings.Cut(filter, "/")
	switch level {
	case "#":
		return n.all(first, found)
	case "+":
		for name, c := range n.children {
			if !first || !strings.HasPrefix(name, "$") {
				found = c.descend(rest, more, found)
			}
		}
		return found
	}
	if c := n.children[level]; c != nil {
		found = c.descend(rest, more, found)
	}
	return found
}

func (n *retainedNode) descend(rest string, more bool, found []*Message) []*Message {
	if more {
		return n.walk(rest, false, found)
	}
	if m := n.shown(); m != nil {
		found = append(found, m)
	}
	return found
}

// all is what "#" matches: everything below, and n itself.
func (n *retainedNode) all(first bool, found []*Message) []*Message {
	if m := n.shown(); m != nil {
		found = append(found, m)
	}
	for name, c := range n.children {
		if !first || !strings.HasPrefix(name, "$") {
			found = c.all(false, found)
		}
	}
	return found
}
