package hook

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/countersign-iot/countersign"
)

// verneQuestion is the body of all of VerneMQ's webhooks.
type verneQuestion struct {
	PeerAddr string       `json:"peer_addr"`
	PeerPort uint16       `json:"peer_port"`
	ClientID string       `json:"client_id"`
	Username string       `json:"username"`
	Password *string      `json:"password"`
	Topic    string       `json:"topic"`
	Topics   []verneTopic `json:"topics"`
	Retain   bool         `json:"retain"`
}

type verneTopic struct {
	Topic string `json:"topic"`
	QoS   int    `json:"qos"`
}

type verneAnswer struct {
	Result    any             `json:"result,omitempty"`
	Topics    []verneTopic    `json:"topics,omitempty"`    // MQTT 3.1.1
	Modifiers *verneModifiers `json:"modifiers,omitempty"` // MQTT 5
}

type verneModifiers struct {
	Topics []verneTopic `json:"topics"`
}

const (
	// maxVerneTopics bounds the filters of one subscription.
	maxVerneTopics = 256
	// verneRefused3 and verneRefused5 in place of a QoS refuse one filter (MQTT 3.1.1,
	// 3.9.3; MQTT 5, 3.9.3).
	verneRefused3 = 128
	verneRefused5 = 135
)

// verneDeny: "next" would pass the question on to the next plug-in.
func verneDeny() reply {
	return jsonReply(http.StatusOK, verneAnswer{Result: map[string]string{"error": "not_allowed"}}, false)
}

func verneAllow() reply { return jsonReply(http.StatusOK, verneAnswer{Result: "ok"}, true) }

// vernemq answers the hooks that the header names, and records those that only report.
func (s *Server) vernemq(ctx context.Context, a asked) reply {
	var in verneQuestion
	if a.r.Method != http.MethodPost || a.path != "" || !readVerne(a.body, &in) {
		return verneDeny()
	}
	name, five := strings.CutSuffix(a.r.Header.Get("Vernemq-Hook"), "_m5")
	k := key{client: in.ClientID, user: in.Username}
	switch name {
	case "auth_on_register":
		if s.connect(ctx, a.hook, in.question(five)).Allow {
			return verneAllow()
		}
	case "auth_on_publish":
		if s.allowed(ctx, a.hook, k, actOf(actPublish, in.Topic, in.Retain)) {
			return verneAllow()
		}
	case "auth_on_subscribe":
		return s.verneSubscribe(ctx, a.hook, in, five)
	case "on_register":
		s.opened(a.hook, in.ClientID, in.Username)
		return jsonReply(http.StatusOK, struct{}{}, true)
	case "on_client_gone", "on_client_offline":
		s.closed(ctx, a.hook, in.ClientID, "", atBroker("client left"))
		return jsonReply(http.StatusOK, struct{}{}, true)
	}
	return verneDeny()
}

func readVerne(body []byte, in *verneQuestion) bool {
	return json.Unmarshal(body, in) == nil && len(in.Topics) <= maxVerneTopics
}

// verneSubscribe refuses filter by filter, and the whole question if none is allowed.
func (s *Server) verneSubscribe(ctx context.Context, h *Hook, in verneQuestion, five bool) reply {
	refused, some := verneRefused3, false
	if five {
		refused = verneRefused5
	}
	for i, t := range in.Topics {
		act := countersign.Act{Action: actSubscribe, Topic: t.Topic}
		if s.allowed(ctx, h, key{client: in.ClientID, user: in.Username}, act) {
			some = true
		} else {
			in.Topics[i].QoS = refused
		}
	}
	switch {
	case !some:
		return verneDeny()
	case five:
		return jsonReply(http.StatusOK, verneAnswer{Result: "ok", Modifiers: &verneModifiers{in.Topics}}, true)
	}
	return jsonReply(http.StatusOK, verneAnswer{Result: "ok", Topics: in.Topics}, true)
}

// question converts it. No password, with use_identity_as_username, means a name from a
// certificate that VerneMQ has verified.
func (in *verneQuestion) question(five bool) question {
	q := question{
		client: in.ClientID, user: in.Username, remote: address(in.PeerAddr, in.PeerPort), protocol: "VerneMQ MQTT 3.1.1",
	}
	if five {
		q.protocol = "VerneMQ MQTT 5"
	}
	if in.Password == nil {
		q.verified = in.Username
		return q
	}
	q.setPassword(*in.Password)
	return q
}
