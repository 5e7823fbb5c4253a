package hook

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"

	"github.com/countersign-iot/countersign"
)

// GenericQuestion is what a broker without a protocol of its own posts to connect,
// publish, subscribe or session. docs/brokers/hivemq.md shows it in use.
type GenericQuestion struct {
	ClientID string `json:"client_id,omitempty"`
	Username string `json:"username,omitempty"`
	// Password as text, or PasswordBase64 for any octets. Neither: none was sent.
	Password       *string `json:"password,omitempty"`
	PasswordBase64 *string `json:"password_base64,omitempty"`
	// Certificate is the client's chain in PEM, leaf first, of a TLS connection that the
	// broker has terminated itself.
	Certificate string `json:"certificate,omitempty"`
	// Verified is the name in a certificate that the broker has verified, if it has
	// only the name.
	Verified string `json:"verified,omitempty"`
	Address  string `json:"address,omitempty"` // the client's, without its port
	Port     uint16 `json:"port,omitempty"`
	Protocol string `json:"protocol,omitempty"` // "MQTT 5"

	// Device is the device in the answer to connect, in questions after it.
	Device string `json:"device,omitempty"`
	Topic  string `json:"topic,omitempty"` // or filter
	Retain bool   `json:"retain,omitempty"`

	Event  string `json:"event,omitempty"`  // of session: opened or closed
	Reason string `json:"reason,omitempty"` // why closed
}

// GenericAnswer is the answer to it. Anything else, and no answer, means a refusal.
type GenericAnswer struct {
	Allow       bool                `json:"allow"`
	Code        countersign.Code    `json:"code,omitempty"`
	Reason      string              `json:"reason,omitempty"`
	Device      string              `json:"device,omitempty"`
	Fleet       string              `json:"fleet,omitempty"`
	NotAfter    int64               `json:"not_after,omitempty"` // Unix seconds: end the session then
	Permissions *GenericPermissions `json:"permissions,omitempty"`
}

// GenericPermissions are what a session may do. Deny goes before allow.
type GenericPermissions struct {
	Publish   GenericFilters `json:"publish"`
	Retain    GenericFilters `json:"retain"`
	Subscribe GenericFilters `json:"subscribe"`
	Receive   GenericFilters `json:"receive"`
}

// GenericFilters are MQTT topic filters.
type GenericFilters struct {
	Allow []string `json:"allow"`
	Deny  []string `json:"deny"`
}

func genericDeny() reply {
	return jsonReply(http.StatusForbidden, GenericAnswer{Code: countersign.NotAllowed, Reason: "unknown question"}, false)
}

// generic answers POST connect, publish, subscribe and session.
func (s *Server) generic(ctx context.Context, a asked) reply {
	var in GenericQuestion
	if a.r.Method != http.MethodPost || json.Unmarshal(a.body, &in) != nil {
		return genericDeny()
	}
	k := key{client: in.ClientID, user: in.Username}
	switch a.path {
	case "connect":
		return jsonAnswer(s.connect(ctx, a.hook, in.question()))
	case actPublish, actSubscribe:
		if s.allowed(ctx, a.hook, k, actOf(a.path, in.Topic, in.Retain)) {
			return jsonReply(http.StatusOK, GenericAnswer{Allow: true}, true)
		}
		return jsonReply(http.StatusOK, GenericAnswer{Code: countersign.NotAllowed, Reason: "the session may not do that"}, false)
	case "session":
		switch in.Event {
		case "opened":
			s.opened(a.hook, in.ClientID, in.Username)
		case "closed":
			s.closed(ctx, a.hook, in.ClientID, in.Username, atBroker(in.Reason))
		default:
			return genericDeny()
		}
		return reply{status: http.StatusNoContent, allowed: true}
	}
	return genericDeny()
}

func jsonAnswer(v countersign.Verdict) reply {
	if !v.Allow {
		return jsonReply(http.StatusOK, GenericAnswer{Code: v.Code, Reason: v.Reason}, false)
	}
	filters := func(f countersign.Filters) GenericFilters {
		return GenericFilters{append([]string{}, f.Allow...), append([]string{}, f.Deny...)}
	}
	out := GenericAnswer{Allow: true, Device: v.Device, Fleet: v.Fleet, Permissions: &GenericPermissions{
		Publish: filters(v.Permissions.Publish), Retain: filters(v.Permissions.Retain),
		Subscribe: filters(v.Permissions.Subscribe), Receive: filters(v.Permissions.Receive),
	}}
	if !v.NotAfter.IsZero() {
		out.NotAfter = v.NotAfter.Unix()
	}
	return jsonReply(http.StatusOK, out, true)
}

func (in *GenericQuestion) question() question {
	q := question{
		client: in.ClientID, user: in.Username, verified: in.Verified, remote: address(in.Address, in.Port), protocol: plain(in.Protocol),
	}
	switch {
	case in.Certificate != "":
		q.setChain(in.Certificate)
	case in.PasswordBase64 != nil:
		password, err := base64.StdEncoding.DecodeString(*in.PasswordBase64)
		if err != nil {
			q.unfit = "password_base64 is not base64"
		}
		q.password = append([]byte{}, password...) // not nil: one was sent
	case in.Password != nil:
		q.setPassword(*in.Password)
	}
	return q
}
