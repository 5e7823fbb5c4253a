package hook

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

const (
	// rabbitExchange is the topic exchange through which RabbitMQ's MQTT plug-in
	// passes all messages.
	rabbitExchange = "amq.topic"
	// rabbitQueue and the suffixes are how the plug-in names a client's queues.
	rabbitQueue = "mqtt-subscription-"
)

func rabbitDeny() reply  { return rabbitReply("deny", false) }
func rabbitAllow() reply { return rabbitReply("allow", true) }

func rabbitReply(word string, allowed bool) reply {
	return reply{status: http.StatusOK, header: map[string]string{"Content-Type": "text/plain"}, body: []byte(word), allowed: allowed}
}

// rabbitmq answers user, vhost, resource and topic, as rabbitmq_auth_backend_http
// asks them by GET or POST.
func (s *Server) rabbitmq(ctx context.Context, a asked) reply {
	text := a.r.URL.RawQuery
	if a.r.Method == http.MethodPost {
		text = string(a.body)
	}
	in, err := url.ParseQuery(text)
	if err != nil || !slices.Contains([]string{http.MethodGet, http.MethodPost}, a.r.Method) || in.Get("username") == "" {
		return rabbitDeny()
	}
	h, user := a.hook, in.Get("username")
	if a.path == "user" {
		if v := s.connect(ctx, h, rabbitQuestion(in)); !v.Allow {
			return rabbitDeny()
		}
		return rabbitAllow() // without tags: a device manages nothing
	}
	// RabbitMQ asked here, with the proof, before it admitted a client by this name, so it
	// is the device's.
	k := key{client: cmp.Or(in.Get("variable_map.client_id"), in.Get("client_id")), user: user}
	v := s.standing(ctx, h, k)
	if !v.Allow || !h.vhost(in.Get("vhost")) {
		return rabbitDeny()
	}
	switch a.path {
	case "vhost":
		return rabbitAllow()
	case "resource":
		client, ok := rabbitResource(v.Device, in.Get("resource"), in.Get("name"), in.Get("permission"))
		if ok && s.mayBe(ctx, h, v.Device, client) {
			return rabbitAllow()
		}
	case "topic":
		act := rabbitAct(in.Get("permission"), in.Get("routing_key"))
		if in.Get("name") != rabbitExchange || act.Action == "" {
			return rabbitDeny()
		}
		if may(rabbitPermissions(v.Permissions), act.Action, act.Topic) {
			return rabbitAllow()
		}
		s.judged(h, k, v, act)
	}
	return rabbitDeny()
}

// vhost reports whether devices may use the virtual host.
func (h *Hook) vhost(name string) bool {
	if len(h.VHosts) == 0 {
		return name == "/"
	}
	return slices.Contains(h.VHosts, name)
}

// rabbitQuestion: no password means that RabbitMQ took the name from a client
// certificate that it has verified (EXTERNAL, ssl_cert_login). An empty one is an empty
// password.
func rabbitQuestion(in url.Values) question {
	q := question{client: in.Get("client_id"), user: in.Get("username"), protocol: "RabbitMQ", remote: address(in.Get("ip"), 0)}
	if !in.Has("password") {
		q.verified = q.user
		return q
	}
	q.password = []byte(in.Get("password")) // percent-encoded: any octets
	return q
}

// rabbitResource reports whether the device may use a resource: the exchange that carries
// MQTT, and queues that have the name of a client of the device, which it returns then.
func rabbitResource(device, kind, name, permission string) (client string, ok bool) {
	switch kind {
	case "exchange":
		return "", name == rabbitExchange && (permission == "read" || permission == "write")
	case "topic":
		return "", name == rabbitExchange
	case "queue":
		own, ok := strings.CutPrefix(name, rabbitQueue)
		if !ok {
			return name, ofDevice(name, device)
		}
		for _, ending := range []string{"qos0", "qos1"} {
			if client, found := strings.CutSuffix(own, ending); found {
				return client, ofDevice(client, device)
			}
		}
	}
	return "", false
}

// mayBe reports whether the device may have such a client identifier: ids may contain
// colons, so "a:b" of device a is also the id of a device "a:b", whose queues belong
// to that device.
func (s *Server) mayBe(ctx context.Context, h *Hook, device, client string) bool {
	if !strings.HasPrefix(client, device+":") {
		return true
	}
	return s.Gatekeeper.Admit(ctx, countersign.Connection{
		Gateway: h.gateway(), Protocol: "RabbitMQ", ClientID: client, Username: device, Vouched: h.Name,
	}).Allow
}

// rabbitAct converts a routing key to the topic that MQTT clients see: dots separate its
// levels, * is one level. A slash is kept, since an AMQP client can send it and it
// reaches MQTT clients unchanged.
func rabbitAct(permission, routingKey string) countersign.Act {
	topic := strings.ReplaceAll(routingKey, ".", "/")
	switch permission {
	case "write":
		return countersign.Act{Action: actPublish, Topic: topic}
	case "read":
		return countersign.Act{Action: actSubscribe, Topic: strings.ReplaceAll(topic, "*", "+")}
	}
	return countersign.Act{}
}

// rabbitPermissions converts permissions to the same form. A filter with a dot in it
// is the same as another one there: it allows nothing, and denies both.
func rabbitPermissions(p countersign.Permissions) countersign.Permissions {
	form := func(f countersign.Filters) countersign.Filters {
		out := countersign.Filters{Allow: slices.DeleteFunc(slices.Clone(f.Allow), func(s string) bool { return strings.Contains(s, ".") })}
		for _, deny := range f.Deny {
			if deny = strings.ReplaceAll(deny, ".", "/"); topics.ValidFilter(deny) {
				out.Deny = append(out.Deny, deny)
			}
		}
		return out
	}
	return countersign.Permissions{Publish: form(p.Publish), Retain: form(p.Retain), Subscribe: form(p.Subscribe), Receive: form(p.Receive)}
}
