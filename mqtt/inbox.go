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

// withInbox allows a session to receive from its inbox. Policy decides who may write there.
func withInbox(p countersign.Permissions, inbox string) countersign.Permissions {
	filter := inbox + "#"
	p.Subscribe.Allow = append(slices.Clip(p.Subscribe.Allow), filter)
	p.Receive.Allow = append(slices.Clip(p.Receive.Allow), filter)
	return p
}

// othersInbox reports whether a topic or filter is below the inboxes and outside of the
// session's own, which no policy grants: not with # either.
func (x *session) othersInbox(topic string) bool {
	return isInbox(topic) && !strings.HasPrefix(topic, x.inbox())
}

// isInbox reports whether a topic is an inbox: nothing is retained there,
// since no client would ever remove it.
func isInbox(topic string) bool { return strings.HasPrefix(topic, inboxes) }

// ownInbox reports whether a filter is one of the session's inbox.
func (x *session) ownInbox(filter string) bool {
	inner, _, _ := topics.Shared(filter)
	return strings.HasPrefix(inner, x.inbox())
}

// mayReceive reports whether the device may receive messages of the topic. What # brings
// along of other inboxes was not asked for, and is no act to report.
func (x *session) mayReceive(topic string) bool {
	allowed := !strings.HasPrefix(topic, "$") && topics.Allowed(x.perms.Receive.Allow, x.perms.Receive.Deny, topic)
	others := allowed && x.othersInbox(topic)
	if !others {
		x.judged("receive", topic, allowed)
	}
	return allowed && !others
}

func (x *session) mayPublish(topic string) bool {
	return !strings.HasPrefix(topic, "$") && topics.Allowed(x.perms.Publish.Allow, x.perms.Publish.Deny, topic)
}

// mayRetain is about what may be published.
func (x *session) mayRetain(topic string) bool {
	return !isInbox(topic) && topics.Allowed(x.perms.Retain.Allow, x.perms.Retain.Deny, topic)
}
