package mqtt

import (
	"slices"
	"strings"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

// inboxes is the level under which each session has topics of its own for
// answers, for its life only.
const inboxes = "_inbox/"

// inbox is where answers to this session go.
func (x *session) inbox() string { return inboxes + x.info.ID + "/" }

// withInbox lets a session hear its inbox. Who may write there is policy's.
func withInbox(p countersign.Permissions, inbox string) countersign.Permissions {
	filter := inbox + "#"
	p.Subscribe.Allow = append(slices.Clip(p.Subscribe.Allow), filter)
	p.Receive.Allow = append(slices.Clip(p.Receive.Allow), filter)
	return p
}

// othersInbox tells whether a topic or filter is below the inboxes and outside of the
// session's own, which no policy grants: not with # either.
func (x *session) othersInbox(topic string) bool {
	return isInbox(topic) && !strings.HasPrefix(topic, x.inbox())
}

// isInbox tells whether a topic is somebody's inbox: nothing is retained there,
// since nobody would ever take it away.
func isInbox(topic string) bool { return strings.HasPrefix(topic, inboxes) }

// closeInbox is the packet that ends the subscriptions to the session's inbox, where
// the engine keeps the session and the inbox must not outlive it; nil: there are none.
func (x *session) closeInbox() []byte {
	if x.expiry == 0 {
		return nil
	}
	p := subscribe{id: 1} // nothing is waited for any more
	for f := range x.filters {
		if inner, _, _ := topics.Shared(f); strings.HasPrefix(inner, x.inbox()) {
			p.filters = append(p.filters, subscription{filter: f})
		}
	}
	if p.filters == nil {
		return nil
	}
	return p.encode(pktUnsubscribe, x.level)
}
