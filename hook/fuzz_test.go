package hook

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

func FuzzXFCC(f *testing.F) {
	f.Add(`By=spiffe://x;Hash=00;Cert="a%20b";Subject="CN=\"a;b\"";URI=`)
	f.Add(`Cert="x",Cert="y"`)
	f.Add(`=;=,"`)
	f.Fuzz(func(t *testing.T, text string) {
		chain, err := parseXFCC(text)
		if (err == nil) != (len(chain) > 0) || len(chain) > maxChain {
			t.Fatalf("%q: got %d certificates and %v", text, len(chain), err)
		}
	})
}

func FuzzEscapedCertificate(f *testing.F) {
	f.Add("-----BEGIN%20CERTIFICATE-----%0AMIIB%0A-----END%20CERTIFICATE-----%0A")
	f.Fuzz(func(t *testing.T, text string) {
		if chain, err := parseEscaped(text); (err == nil) != (len(chain) > 0) {
			t.Fatalf("%q: got %d certificates and %v", text, len(chain), err)
		}
	})
}

func FuzzEMQX(f *testing.F) {
	f.Add([]byte(`{"clientid":"a","username":"b","password":"c","peerhost":"192.0.2.1","peerport":"1","cert_pem":"undefined","retain":"true"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var in emqxQuestion
		if json.Unmarshal(body, &in) != nil {
			return
		}
		in.clean()
		q := in.question()
		if q.password != nil && (len(q.peer) > 0 || q.verified != "") {
			t.Fatalf("%s: a password beside a certificate", body)
		}
	})
}

func FuzzVerneMQ(f *testing.F) {
	f.Add([]byte(`{"peer_addr":"::1","peer_port":1,"username":"a","password":null,"client_id":"c","topics":[{"topic":"a","qos":1}]}`), true)
	f.Fuzz(func(t *testing.T, body []byte, five bool) {
		var in verneQuestion
		if !readVerne(body, &in) {
			return
		}
		if q := in.question(five); (q.verified != "") && q.password != nil {
			t.Fatalf("%s: a password and the broker's word", body)
		}
	})
}

func FuzzGeneric(f *testing.F) {
	f.Add([]byte(`{"client_id":"c","username":"u","password_base64":"/w==","address":"192.0.2.1"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var in GenericQuestion
		if json.Unmarshal(body, &in) != nil {
			return
		}
		if q := in.question(); (in.Password != nil || in.PasswordBase64 != nil) && in.Certificate == "" && q.password == nil {
			t.Fatalf("%s: the password got lost", body)
		}
	})
}

// FuzzRabbitMQ holds the answer against a plain reading: what is allowed as a key is
// allowed as the topic that MQTT clients see.
func FuzzRabbitMQ(f *testing.F) {
	f.Add("username=a&password=b", "write", "devices.a.up", "devices/a/#", "devices/a/secret.x")
	f.Add("%", "read", "devices.*.#", "devices/+/#", "")
	f.Fuzz(func(t *testing.T, query, permission, key, allow, deny string) {
		if in, err := url.ParseQuery(query); err == nil {
			q := rabbitQuestion(in)
			if in.Has("password") == (q.password == nil) {
				t.Fatalf("%q: absent and empty passwords are not the same", query)
			}
		}
		list := countersign.Filters{Allow: []string{allow}}
		if deny != "" {
			list.Deny = []string{deny}
		}
		p := rabbitPermissions(countersign.Permissions{Publish: list, Subscribe: list, Receive: list})
		a := rabbitAct(permission, key)
		if !may(p, a.Action, a.Topic) {
			return
		}
		if strings.Contains(a.Topic, ".") || !topics.Covers(allow, a.Topic) {
			t.Fatalf("key %q was allowed by %q", key, allow)
		}
		if d := strings.ReplaceAll(deny, ".", "/"); topics.ValidFilter(d) && topics.Overlap(d, a.Topic) {
			t.Fatalf("key %q was allowed although %q is denied", key, deny)
		}
	})
}

func FuzzDynsec(f *testing.F) {
	f.Add([]byte(`{"responses":[{"command":"getClient","correlationData":"x","data":{"client":{"username":"a","disabled":true}}}]}`))
	f.Fuzz(func(_ *testing.T, text []byte) { _, _ = parseDynsec(text) })
}

func FuzzConnz(f *testing.F) {
	f.Add([]byte(`{"server":{"id":"N1"},"data":{"connections":[{"cid":5,"authorized_user":"a"}]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if z, err := parseConnz(text); err == nil && z.Server.ID == "" {
			t.Fatalf("%s: an answer without an author", text)
		}
	})
}

func FuzzCallout(f *testing.F) {
	f.Add("eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.e30.AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		if in, err := readCallout(text); err == nil && in.UserNkey == "" {
			t.Fatalf("%q: a question about no client", text)
		}
	})
}

// FuzzNATSSubjects: no filter becomes a subject that is wider than it.
func FuzzNATSSubjects(f *testing.F) {
	f.Add("devices/a.b/up/#")
	f.Add("/+/")
	f.Fuzz(func(t *testing.T, filter string) {
		for _, s := range topics.NATSSubjects([]string{filter}) {
			if strings.Contains(s, ">") && !strings.HasSuffix(filter, "#") || strings.Count(s, "*") > strings.Count(filter, "+") {
				t.Fatalf("%q became %q", filter, s)
			}
		}
	})
}
