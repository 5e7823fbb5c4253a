package broker

import (
	"strings"
	"sync"
)

// retainedNode is one level of the topics of retained messages.
type retainedNode struct {
	up       *retainedNode
	level    string
	children map[string]*retainedNode
	m        *Message
}

// retained holds the retained messages of the node by the levels of their topics.
type retained struct {
	mu   sync.RWMutex
	root retainedNode
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
		return n.m
	}
	return nil
}

// set replaces the retained message of a topic and returns the older one. m nil: none.
func (r *retained) set(topic string, m *Message) (old *Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.find(topic, m != nil)
	if n == nil {
		return nil
	}
	old, n.m = n.m, m
	for n.up != nil && n.m == nil && len(n.children) == 0 {
		delete(n.up.children, n.level)
		n = n.up
	}
	return old
}

// drop removes m if it is still the retained message of its topic.
func (r *retained) drop(m *Message) bool {
	r.mu.RLock()
	n := r.find(m.Topic, false)
	same := n != nil && n.m == m
	r.mu.RUnlock()
	return same && r.set(m.Topic, nil) == m
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
	if n.m != nil {
		found = append(found, n.m)
	}
	return found
}

// all is what "#" matches: everything below, and n itself.
func (n *retainedNode) all(first bool, found []*Message) []*Message {
	if n.m != nil {
		found = append(found, n.m)
	}
	for name, c := range n.children {
		if !first || !strings.HasPrefix(name, "$") {
			found = c.all(false, found)
		}
	}
	return found
}
