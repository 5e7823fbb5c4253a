package hook

import (
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

// The actions that brokers ask about, named as in countersign.Act.
const (
	actPublish   = "publish"
	actSubscribe = "subscribe"
	actRetain    = "retain"
)

// actOf returns the act that a broker asks about: retain is an action of its own.
func actOf(action, topic string, retain bool) countersign.Act {
	if retain && action == actPublish {
		action = actRetain
	}
	return countersign.Act{Action: action, Topic: topic}
}

// mayPublish reports whether the session may publish to the topic, which must be a valid
// topic name; with the retain flag only if that is allowed too.
func mayPublish(p countersign.Permissions, topic string, retain bool) bool {
	if !topics.ValidName(topic) || !topics.Allowed(p.Publish.Allow, p.Publish.Deny, topic) {
		return false
	}
	return !retain || topics.Allowed(p.Retain.Allow, p.Retain.Deny, topic)
}

// maySubscribe reports whether the session may subscribe. A broker does not ask again
// when it delivers, so all that the filter matches must be allowed to be received.
func maySubscribe(p countersign.Permissions, filter string) bool {
	inner, _, ok := topics.Shared(filter)
	return ok && topics.ValidFilter(inner) &&
		topics.Allowed(p.Subscribe.Allow, p.Subscribe.Deny, inner) &&
		topics.Allowed(p.Receive.Allow, p.Receive.Deny, inner)
}

// may reports whether the session may do an action, by its name. An unknown one is denied.
func may(p countersign.Permissions, action, topic string) bool {
	switch action {
	case actPublish, actRetain:
		return mayPublish(p, topic, action == actRetain)
	case actSubscribe:
		return maySubscribe(p, topic)
	}
	return false
}

// ofDevice reports whether a client id is the device's, by the rule of the MQTT gateway:
// the id itself, or the id, a slash or colon, and more.
func ofDevice(client, device string) bool {
	rest, ok := strings.CutPrefix(client, device)
	return device != "" && ok && (rest == "" || rest[0] == '/' || rest[0] == ':')
}

// maxWord bounds the text of a broker that is put into an event.
const maxWord = 80

// plain makes the text of another program safe for the log.
func plain(word string) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(word, ""))
	if len(clean) > maxWord {
		clean = strings.ToValidUTF8(clean[:maxWord], "")
	}
	return clean
}
