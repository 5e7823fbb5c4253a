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

// mayPublish: to a name that is one, and with the retain flag only where that is
// allowed too.
func mayPublish(p countersign.Permissions, topic string, retain bool) bool {
	if !topics.ValidName(topic) || !topics.Allowed(p.Publish.Allow, p.Publish.Deny, topic) {
		return false
	}
	return !retain || topics.Allowed(p.Retain.Allow, p.Retain.Deny, topic)
}

// maySubscribe: a broker does not ask again when it delivers, so all that the
// filter stands for must be among what may be received.
func maySubscribe(p countersign.Permissions, filter string) bool {
	inner, _, ok := topics.Shared(filter)
	return ok && topics.ValidFilter(inner) &&
		topics.Allowed(p.Subscribe.Allow, p.Subscribe.Deny, inner) &&
		topics.Allowed(p.Receive.Allow, p.Receive.Deny, inner)
}

// may answers for an action by its name. One that is not known is denied.
func may(p countersign.Permissions, action, topic string, retain bool) bool {
	switch action {
	case actPublish:
		return mayPublish(p, topic, retain)
	case actSubscribe:
		return maySubscribe(p, topic)
	}
	return false
}

// ofDevice reports whether a client id is the device's, as a gateway of ours would
// see it: the id itself, or the id, a slash or colon, and more.
func ofDevice(client, device string) bool {
	rest, ok := strings.CutPrefix(client, device)
	return device != "" && ok && (rest == "" || rest[0] == '/' || rest[0] == ':')
}

// maxWord bounds what is taken from a broker into an event.
const maxWord = 80

// plain makes a word of another program fit for the log.
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
