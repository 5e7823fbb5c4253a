package hook

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

// emqxQuestion is the body that EMQX sends when configured as in docs/brokers/emqx.md.
// EMQX replaces variables that have no value by "undefined" or by nothing, depending
// on its version.
type emqxQuestion struct {
	ClientID   string      `json:"clientid"`
	Username   string      `json:"username"`
	Password   *string     `json:"password"`
	PeerHost   string      `json:"peerhost"`
	PeerPort   json.Number `json:"peerport"`
	Protocol   string      `json:"protocol"`
	CertPEM    string      `json:"cert_pem"`
	CommonName string      `json:"cert_common_name"`

	// Of authz.
	Device string      `json:"device"` // the client attribute that we set
	Action string      `json:"action"`
	Topic  string      `json:"topic"`
	Retain emqxBoolean `json:"retain"`

	// Of session.
	Event  string `json:"event"`
	Reason string `json:"reason"`
}

// emqxBoolean is a boolean, bare or quoted, depending on the template.
type emqxBoolean bool

func (b *emqxBoolean) UnmarshalJSON(text []byte) error {
	*b = emqxBoolean(strings.Trim(string(text), `"`) == "true")
	return nil
}

// emqxRule is an entry of the list that EMQX 5.8 and later accept with the verdict.
type emqxRule struct {
	Permission string `json:"permission"`
	Action     string `json:"action"`
	Topic      string `json:"topic"`
	Retain     *bool  `json:"retain,omitempty"`
}

// emqxAnswer must be sent with status 200, also a refusal: EMQX reads any other status
// as "ignore" and continues with the next authenticator.
type emqxAnswer struct {
	Result     string            `json:"result"`
	Superuser  bool              `json:"is_superuser"`
	Attributes map[string]string `json:"client_attrs,omitempty"`
	ExpireAt   int64             `json:"expire_at,omitempty"` // Unix seconds
	ACL        []emqxRule        `json:"acl,omitempty"`
}

func emqxDeny() reply { return jsonReply(http.StatusOK, emqxAnswer{Result: "deny"}, false) }

func jsonReply(status int, v any, allowed bool) reply {
	b, err := json.Marshal(v)
	if err != nil { // cannot happen with these types
		return reply{status: http.StatusInternalServerError}
	}
	return reply{status: status, header: map[string]string{"Content-Type": "application/json"}, body: b, allowed: allowed}
}

// emqx answers POST authn, authz and session.
func (s *Server) emqx(ctx context.Context, a asked) reply {
	var in emqxQuestion
	if a.r.Method != http.MethodPost || json.Unmarshal(a.body, &in) != nil {
		return emqxDeny()
	}
	in.clean()
	switch a.path {
	case "authn":
		v := s.connect(ctx, a.hook, in.question())
		if !v.Allow {
			return emqxDeny()
		}
		out := emqxAnswer{Result: "allow", Attributes: map[string]string{"device": v.Device, "fleet": v.Fleet}, ACL: emqxACL(v.Permissions)}
		if !v.NotAfter.IsZero() {
			out.ExpireAt = v.NotAfter.Unix()
		}
		return jsonReply(http.StatusOK, out, true)
	case "authz":
		if s.allowed(ctx, a.hook, key{client: in.ClientID, user: in.Username}, actOf(in.Action, in.Topic, bool(in.Retain))) {
			return jsonReply(http.StatusOK, emqxAnswer{Result: "allow"}, true)
		}
	case "session":
		switch in.Event {
		case "client.connected":
			s.opened(a.hook, in.ClientID, in.Username)
		case "client.disconnected":
			s.closed(ctx, a.hook, in.ClientID, in.Username, atBroker(in.Reason))
		}
		return reply{status: http.StatusNoContent, allowed: true}
	}
	return emqxDeny()
}

// clean removes the values that mean none.
func (in *emqxQuestion) clean() {
	for _, p := range []*string{&in.Username, &in.CertPEM, &in.CommonName, &in.Device, &in.PeerHost} {
		if *p == "undefined" {
			*p = ""
		}
	}
	if in.Password != nil && (*in.Password == "" || *in.Password == "undefined") {
		in.Password = nil
	}
}

func (in *emqxQuestion) question() question {
	port, _ := in.PeerPort.Int64() // 0 where there is none
	q := question{
		client: in.ClientID, user: in.Username, verified: in.CommonName, protocol: "EMQX " + plain(in.Protocol),
		remote: address(in.PeerHost, uint16(min(max(port, 0), 65535))),
	}
	if in.CertPEM != "" {
		q.setChain(in.CertPEM)
	} else if in.CommonName == "" && in.Password != nil { // a certificate takes precedence
		q.setPassword(*in.Password)
	}
	return q
}

// emqxACL writes permissions as EMQX's rules, which are tried in order. Where EMQX
// would read a rule as more than is meant, it returns none, and EMQX asks for each act:
// for partly denied filters, + against # in a subscription, variables, "eq ".
func emqxACL(p countersign.Permissions) []emqxRule {
	if len(p.Publish.Deny)+len(p.Retain.Deny)+len(p.Subscribe.Deny)+len(p.Receive.Deny) > 0 {
		return nil
	}
	var rules []emqxRule
	for _, list := range []struct {
		action  string
		filters []string
		within  []string
		retain  *bool
	}{
		{actPublish, p.Publish.Allow, []string{"#", "$SYS/#"}, new(false)},
		{actPublish, p.Retain.Allow, p.Publish.Allow, new(true)},
		{actSubscribe, p.Subscribe.Allow, p.Receive.Allow, nil},
	} {
		for _, f := range list.filters {
			if strings.Contains(f, "${") || strings.HasPrefix(f, "eq ") || list.action == actSubscribe && strings.Contains(f, "+") ||
				!topics.Allowed(list.within, nil, f) {
				return nil
			}
			rules = append(rules, emqxRule{Permission: "allow", Action: list.action, Topic: f, Retain: list.retain})
		}
	}
	return append(rules, emqxRule{Permission: "deny", Action: "all", Topic: "#"})
}
