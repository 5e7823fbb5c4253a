package hook_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/hook"
)

// The bodies here are those of the brokers' own documentation, with our names.

func quoted(t *testing.T, text string) string {
	t.Helper()
	b, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEMQXAuthenticates(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
	d.guard.notAfter = d.now.Add(time.Hour)
	pem := quoted(t, string(pemOf(certificate(t, "pump-1"))))
	for _, c := range []struct {
		name, body string
		allow      bool
	}{
		{"certificate", `{"clientid":"pump-1","username":"undefined","password":"undefined","peerhost":"192.0.2.7","cert_pem":` + pem + `}`, true},
		{"secret", `{"clientid":"pump-1","username":"pump-1","password":"right","peerhost":"192.0.2.7"}`, true},
		{"wrong secret", `{"clientid":"pump-1","username":"pump-1","password":"wrong"}`, false},
		{"a name alone", `{"clientid":"pump-1","username":"pump-1"}`, false},
		{"a verified name, not vouched for", `{"clientid":"pump-1","cert_common_name":"pump-1"}`, false},
		{"corrupted octets", `{"clientid":"pump-1","username":"pump-1","password":"a` + "\ufffd" + `b"}`, false},
		{"no certificate in cert_pem", `{"clientid":"pump-1","cert_pem":"x"}`, false},
		{"no JSON", `clientid=pump-1`, false},
	} {
		status, header, body := d.ask(http.MethodPost, "/hooks/emqx/authn", c.body)
		var out map[string]any
		if err := json.Unmarshal([]byte(body), &out); err != nil || status != http.StatusOK || header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: got %d %s: anything but 200 with JSON means ignore", c.name, status, body)
			continue
		}
		want := "deny"
		if c.allow {
			want = "allow"
		}
		if out["result"] != want {
			t.Errorf("%s: got result %v, want %s", c.name, out["result"], want)
		}
		if c.allow && out["expire_at"] != float64(d.guard.notAfter.Unix()) {
			t.Errorf("%s: got expire_at %v, want %d", c.name, out["expire_at"], d.guard.notAfter.Unix())
		}
	}
	if got := d.guard.asked[0].Remote.Addr(); got != netip.MustParseAddr("192.0.2.7") {
		t.Errorf("the device's address: got %s, want 192.0.2.7", got)
	}
}

func TestEMQXRulesSayNoMoreThanThePermissions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		perms countersign.Permissions
		want  []string
	}{
		{"plain", permissions("pump-1"), []string{"allow publish devices/pump-1/up/#", "allow subscribe devices/pump-1/down/#", "deny all #"}},
		{"denies", countersign.Permissions{Publish: countersign.Filters{Allow: []string{"a/#"}, Deny: []string{"a/b"}}}, nil},
		{"plus in a subscription", countersign.Permissions{
			Subscribe: countersign.Filters{Allow: []string{"a/+"}}, Receive: countersign.Filters{Allow: []string{"#"}},
		}, nil},
		{"variable", countersign.Permissions{Publish: countersign.Filters{Allow: []string{"a/${clientid}"}}}, nil},
		{"not to be received", countersign.Permissions{Subscribe: countersign.Filters{Allow: []string{"a/#"}}}, nil},
	} {
		d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
		d.guard.perms = func(string) countersign.Permissions { return c.perms }
		_, _, body := d.ask(http.MethodPost, "/hooks/emqx/authn", `{"clientid":"pump-1","username":"pump-1","password":"right"}`)
		var out struct {
			ACL []struct{ Permission, Action, Topic string }
		}
		if err := json.Unmarshal([]byte(body), &out); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range out.ACL {
			got = append(got, r.Permission+" "+r.Action+" "+r.Topic)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: rules (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestEMQXAuthorizesFromTheVerdict(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
	d.ask(http.MethodPost, "/hooks/emqx/authn", `{"clientid":"c1","username":"pump-1","password":"right"}`)
	asked := d.guard.count()
	for body, want := range map[string]string{
		`{"clientid":"c1","username":"pump-1","action":"publish","topic":"devices/pump-1/up/t"}`:                   "allow",
		`{"clientid":"c1","username":"pump-1","action":"publish","topic":"devices/pump-1/up/t","retain":"true"}`:   "deny",
		`{"clientid":"c1","username":"pump-1","action":"publish","topic":"devices/pump-2/up/t"}`:                   "deny",
		`{"clientid":"c1","username":"pump-1","action":"subscribe","topic":"devices/pump-1/down/#"}`:               "allow",
		`{"clientid":"c1","username":"pump-1","action":"subscribe","topic":"$share/g/devices/pump-1/down/#"}`:      "allow",
		`{"clientid":"c1","username":"pump-1","action":"subscribe","topic":"devices/#"}`:                           "deny",
		`{"clientid":"c1","username":"pump-1","action":"delete","topic":"devices/pump-1/up/t"}`:                    "deny",
		`{"clientid":"c2","username":"pump-2","action":"publish","topic":"devices/pump-2/up/t"}`:                   "deny", // not known
		`{"clientid":"c2","username":"x","device":"pump-2","action":"publish","topic":"devices/pump-2/up/t"}`:      "deny", // by name alone
		`{"clientid":"c1","username":"pump-1","device":"pump-2","action":"publish","topic":"devices/pump-2/up/t"}`: "deny",
	} {
		if _, _, got := d.ask(http.MethodPost, "/hooks/emqx/authz", body); !strings.Contains(got, `"result":"`+want+`"`) {
			t.Errorf("%s: got %s, want %s", body, got, want)
		}
	}
	if n := d.guard.count() - asked; n != 0 {
		t.Errorf("the guard was asked %d times, want never: a session that is not known must connect again", n)
	}
	if len(d.guard.judged) == 0 {
		t.Error("no denied act was reported")
	}
}

func TestRabbitMQAnswers(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "r", Kind: hook.RabbitMQ, Vouch: true, VHosts: []string{"/", "iot"}})
	ask := func(path, query string) string {
		_, _, got := d.ask(http.MethodGet, "/hooks/r/"+path+"?"+query, "")
		status, _, posted := d.ask(http.MethodPost, "/hooks/r/"+path, query)
		if got != posted || status != http.StatusOK {
			t.Errorf("%s?%s: GET got %q, POST %d %q", path, query, got, status, posted)
		}
		return got
	}
	for _, c := range []struct{ path, query, want string }{
		{"topic", "username=pump-2&vhost=/&resource=topic&name=amq.topic&permission=write&routing_key=devices.pump-2.up.t", "deny"}, // it never connected
		{"user", "username=pump-1&password=right&vhost=/&client_id=pump-1", "allow"},
		{"user", "username=pump-1&password=wrong", "deny"},
		{"user", "username=pump-1&password=", "deny"}, // empty is not absent
		{"user", "username=pump-1", "allow"},          // from a certificate
		{"user", "", "deny"},
		{"user", "username=%zz", "deny"},
		{"vhost", "username=pump-1&vhost=iot&ip=192.0.2.7", "allow"},
		{"vhost", "username=pump-1&vhost=other", "deny"},
		{"resource", "username=pump-1&vhost=/&resource=exchange&name=amq.topic&permission=write", "allow"},
		{"resource", "username=pump-1&vhost=/&resource=exchange&name=amq.topic&permission=configure", "deny"},
		{"resource", "username=pump-1&vhost=/&resource=exchange&name=amq.direct&permission=write", "deny"},
		{"resource", "username=pump-1&vhost=/&resource=queue&name=mqtt-subscription-pump-1qos1&permission=configure", "allow"},
		{"resource", "username=pump-1&vhost=/&resource=queue&name=mqtt-subscription-pump-2qos1&permission=read", "deny"},
		{"resource", "username=pump-1&vhost=/&resource=queue&name=mqtt-subscription-pump-12qos1&permission=read", "deny"},
		{"resource", "username=pump-1&vhost=/&resource=queue&name=mqtt-subscription-pump-1:aqos1&permission=read", "allow"},
		{"resource", "username=pump-1&vhost=/&resource=queue&name=mqtt-subscription-pump-1:deviceqos1&permission=read", "deny"},
		{"resource", "username=pump-1&vhost=/&resource=queue&name=pump-1:device&permission=configure", "deny"},
		{"topic", "username=pump-1&vhost=/&resource=topic&name=amq.topic&permission=write&routing_key=devices.pump-1.up.t", "allow"},
		{"topic", "username=pump-1&vhost=/&resource=topic&name=amq.topic&permission=write&routing_key=devices.pump-2.up.t", "deny"},
		{"topic", "username=pump-1&vhost=/&resource=topic&name=amq.topic&permission=write&routing_key=devices/pump-2/up/t", "deny"},
		{"topic", "username=pump-1&vhost=/&resource=topic&name=amq.topic&permission=read&routing_key=devices.pump-1.down.*", "allow"},
		{"topic", "username=pump-1&vhost=/&resource=topic&name=amq.topic&permission=read&routing_key=devices.%23", "deny"},
		{"topic", "username=pump-1&vhost=/&resource=topic&name=amq.topic&permission=delete&routing_key=devices.pump-1.up.t", "deny"},
		{"topic", "username=pump-1&vhost=/&resource=topic&name=other&permission=write&routing_key=devices.pump-1.up.t", "deny"},
	} {
		if got := ask(c.path, c.query); got != c.want {
			t.Errorf("%s?%s: got %q, want %q", c.path, c.query, got, c.want)
		}
	}
}

// TestATokenGivesNoOtherDevicesName holds what such a broker knows of a client, the user
// name, against what the client has proved.
func TestATokenGivesNoOtherDevicesName(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "r", Kind: hook.RabbitMQ}, hook.Hook{Name: "v", Kind: hook.VerneMQ}, hook.Hook{Name: "emqx", Kind: hook.EMQX})
	d.guard.tokens = map[string]string{"token": "pump-2"}
	const topic = "/hooks/r/topic?username=pump-1&vhost=/&name=amq.topic&permission=write&routing_key=devices.pump-2.up.t"
	for _, c := range []struct{ path, body, hook, want string }{
		{"/hooks/r/user", "username=pump-1&password=token", "", "deny"},
		{"/hooks/r/user", "username=pump-2&password=token", "", "allow"},
		{"/hooks/r/user", "username=hub/pump-2/?api-version=1&password=token", "", "allow"}, // no device's name
		{topic, "", "", "deny"}, // nothing is kept under the wrong name
		{"/hooks/v/", `{"client_id":"pump-2","username":"pump-1","password":"token"}`, "auth_on_register", `{"result":{"error":"not_allowed"}}`},
		{"/hooks/v/", `{"client_id":"pump-2","username":"pump-2","password":"token"}`, "auth_on_register", `{"result":"ok"}`},
	} {
		if _, _, got := d.ask(http.MethodPost, c.path, c.body, "Vernemq-Hook", c.hook); got != c.want {
			t.Errorf("%s %s: got %s, want %s", c.path, c.body, got, c.want)
		}
	}
	_, _, got := d.ask(http.MethodPost, "/hooks/emqx/authn", `{"clientid":"pump-2","username":"pump-1","password":"token"}`)
	if !strings.Contains(got, `"device":"pump-2"`) { // which EMQX passes on with each question
		t.Errorf("emqx: got %s", got)
	}
}

func TestRabbitMQDotsNeverWiden(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "r", Kind: hook.RabbitMQ, Vouch: true})
	d.guard.perms = func(string) countersign.Permissions {
		return countersign.Permissions{Publish: countersign.Filters{Allow: []string{"a/#", "x.y/z"}, Deny: []string{"a/secret.s/#"}}}
	}
	d.ask(http.MethodGet, "/hooks/r/user?username=pump-1", "")
	for routingKey, want := range map[string]string{
		"a.b": "allow", "a.secret.s.t": "deny", "x.y.z": "deny", "a.secret": "allow",
	} {
		query := url.Values{"username": {"pump-1"}, "vhost": {"/"}, "name": {"amq.topic"}, "permission": {"write"}, "routing_key": {routingKey}}
		if _, _, got := d.ask(http.MethodGet, "/hooks/r/topic?"+query.Encode(), ""); got != want {
			t.Errorf("routing key %s: got %s, want %s", routingKey, got, want)
		}
	}
}

func TestVerneMQAnswers(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "v", Kind: hook.VerneMQ})
	for _, c := range []struct{ hook, body, want string }{
		{"auth_on_register", `{"peer_addr":"192.0.2.7","peer_port":8888,"username":"pump-1","password":"right","mountpoint":"","client_id":"c1","clean_session":false}`, `{"result":"ok"}`},
		{"on_register", `{"peer_addr":"192.0.2.7","peer_port":8888,"username":"pump-1","mountpoint":"","client_id":"c1"}`, `{}`},
		{"auth_on_register_m5", `{"username":"pump-1","password":"wrong","client_id":"c9","clean_start":true,"properties":{}}`, `{"result":{"error":"not_allowed"}}`},
		{"auth_on_register", `{"username":"pump-1","password":null,"client_id":"c9"}`, `{"result":{"error":"not_allowed"}}`},
		{"auth_on_publish", `{"username":"pump-1","client_id":"c1","qos":1,"topic":"devices/pump-1/up/t","payload":"aGVsbG8=","retain":false}`, `{"result":"ok"}`},
		{"auth_on_publish_m5", `{"username":"pump-1","client_id":"c1","qos":1,"topic":"devices/pump-1/up/t","retain":true}`, `{"result":{"error":"not_allowed"}}`},
		{
			"auth_on_subscribe", `{"client_id":"c1","username":"pump-1","topics":[{"topic":"devices/pump-1/down/#","qos":1},{"topic":"c/d","qos":2}]}`,
			`{"result":"ok","topics":[{"topic":"devices/pump-1/down/#","qos":1},{"topic":"c/d","qos":128}]}`,
		},
		{
			"auth_on_subscribe_m5", `{"client_id":"c1","username":"pump-1","topics":[{"topic":"devices/pump-1/down/#","qos":1},{"topic":"c/d","qos":2}]}`,
			`{"result":"ok","modifiers":{"topics":[{"topic":"devices/pump-1/down/#","qos":1},{"topic":"c/d","qos":135}]}}`,
		},
		{"auth_on_subscribe", `{"client_id":"c1","username":"pump-1","topics":[{"topic":"c/d","qos":2}]}`, `{"result":{"error":"not_allowed"}}`},
		{"on_client_gone", `{"client_id":"c1","mountpoint":""}`, `{}`},
		{"on_deliver", `{}`, `{"result":{"error":"not_allowed"}}`},
		{"auth_on_register", `[]`, `{"result":{"error":"not_allowed"}}`},
	} {
		status, header, got := d.ask(http.MethodPost, "/hooks/v/", c.body, "Vernemq-Hook", c.hook)
		if status != http.StatusOK || got != c.want {
			t.Errorf("%s %s:\ngot %d %s\nwant    %s", c.hook, c.body, status, got, c.want)
		}
		if strings.Contains(header.Get("Cache-Control"), "max-age") {
			t.Errorf("%s: VerneMQ would keep the answer beyond a revocation", c.hook)
		}
	}
	if len(d.guard.opened) != 1 || d.guard.opened[0].ClientID != "c1" || d.guard.opened[0].Remote.Addr().String() != "192.0.2.7" {
		t.Errorf("Opened: got %+v, want the session of c1", d.guard.opened)
	}
	if len(d.guard.closed) != 1 || d.guard.closed[0] != "c1 broker: client left" {
		t.Errorf("Closed: got %q, want that of c1", d.guard.closed)
	}
}

func TestGenericAnswers(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "g", Kind: hook.Generic, Vouch: true})
	ask := func(path string, q hook.GenericQuestion) hook.GenericAnswer {
		b, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		var out hook.GenericAnswer
		if _, _, body := d.ask(http.MethodPost, "/hooks/g/"+path, string(b)); body != "" {
			if err := json.Unmarshal([]byte(body), &out); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
		}
		return out
	}
	d.guard.secrets["\xff\x00"] = "pump-1"
	text, octets, empty := "right", "/wA=", ""
	for name, q := range map[string]hook.GenericQuestion{
		"certificate": {ClientID: "c", Certificate: string(pemOf(certificate(t, "pump-1")))},
		"password":    {ClientID: "c", Username: "pump-1", Password: &text},
		"octets":      {ClientID: "c", Username: "pump-1", PasswordBase64: &octets},
		"verified":    {ClientID: "c", Verified: "pump-1"},
	} {
		if out := ask("connect", q); !out.Allow || out.Device != "pump-1" || out.Permissions == nil || len(out.Permissions.Publish.Allow) != 1 {
			t.Errorf("connect by %s: got %+v, want pump-1 with its permissions", name, out)
		}
	}
	if out := ask("connect", hook.GenericQuestion{Username: "pump-1", PasswordBase64: &empty, Verified: "pump-1"}); out.Allow {
		t.Error("an empty password was taken for none")
	}
	if out := ask("publish", hook.GenericQuestion{ClientID: "never", Username: "pump-1", Topic: "devices/pump-1/up/x"}); out.Allow {
		t.Error("a session that never connected may publish by its user name alone")
	}
	if out := ask("publish", hook.GenericQuestion{ClientID: "c", Username: "pump-1", Topic: "devices/pump-1/up/x"}); !out.Allow {
		t.Errorf("publish: got %+v, want yes", out)
	}
	if out := ask("subscribe", hook.GenericQuestion{ClientID: "c", Username: "pump-1", Topic: "#"}); out.Allow || out.Code == "" {
		t.Errorf("subscribe to all: got %+v, want no with a code", out)
	}
	ask("session", hook.GenericQuestion{ClientID: "c", Username: "pump-1", Event: "opened"})
	ask("session", hook.GenericQuestion{ClientID: "c", Username: "pump-1", Event: "closed", Reason: "bye\n"})
	if len(d.guard.opened) != 1 || len(d.guard.closed) != 1 || d.guard.closed[0] != "c broker: bye" {
		t.Errorf("got opened %d, closed %q", len(d.guard.opened), d.guard.closed)
	}
}

func TestProxiesShowCertificates(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "n", Kind: hook.Nginx}, hook.Hook{Name: "e", Kind: hook.Envoy})
	text := string(pemOf(certificate(t, "cam-1")))
	escaped := url.PathEscape(text)
	for _, c := range []struct {
		name, path, header, value string
		want                      int
	}{
		{"nginx", "/hooks/n/auth", "X-Client-Cert", escaped, http.StatusOK},
		{"nginx without", "/hooks/n/auth", "X-Other", "", http.StatusUnauthorized},
		{"nginx garbage", "/hooks/n/auth", "X-Client-Cert", "%zz", http.StatusForbidden},
		{"envoy", "/hooks/e/any/path", "X-Forwarded-Client-Cert", `By=spiffe://x;Hash=00;Cert="` + escaped + `";Subject="CN=\"a;b\"";URI=spiffe://y`, http.StatusOK},
		{"envoy, two elements", "/hooks/e/", "X-Forwarded-Client-Cert", `Cert="` + escaped + `",By=x`, http.StatusForbidden},
		{"envoy, two certificates", "/hooks/e/", "X-Forwarded-Client-Cert", `Cert="` + escaped + `";Cert="` + escaped + `"`, http.StatusForbidden},
		{"envoy, hash alone", "/hooks/e/", "X-Forwarded-Client-Cert", `Hash=00`, http.StatusForbidden},
		{"envoy, open quote", "/hooks/e/", "X-Forwarded-Client-Cert", `Cert="abc`, http.StatusForbidden},
		{"envoy without", "/hooks/e/", "X-Other", "", http.StatusUnauthorized},
	} {
		status, header, _ := d.ask(http.MethodGet, c.path, "", c.header, c.value)
		if status != c.want {
			t.Errorf("%s: got %d, want %d", c.name, status, c.want)
		}
		if c.want == http.StatusOK && (header.Get("X-Device-Id") != "cam-1" || header.Get("X-Fleet") != "pumps") {
			t.Errorf("%s: got headers %v, want cam-1 of pumps", c.name, header)
		}
	}
	asked := d.guard.count()
	d.ask(http.MethodGet, "/hooks/n/auth", "", "X-Client-Cert", escaped)
	if d.guard.count() != asked {
		t.Error("the same certificate was decided again")
	}
	d.guard.refuse("cam-1", true)
	d.happen(countersign.DeviceRevoked, "cam-1")
	if status, _, _ := d.ask(http.MethodGet, "/hooks/n/auth", "", "X-Client-Cert", escaped); status != http.StatusForbidden {
		t.Errorf("after revocation: got %d, want 403", status)
	}
	r := httptest.NewRequest(http.MethodGet, "/hooks/n/auth", nil)
	r.Header.Set("Authorization", "Bearer "+hookSecret)
	r.Header["X-Client-Cert"] = []string{escaped, escaped}
	if status, _, _ := d.send(r); status != http.StatusForbidden {
		t.Errorf("two headers: got %d, want 403", status)
	}
}

func thumbprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

func pemOf(c *x509.Certificate) []byte { return pemCertificate(c.Raw) }

func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	const right = `{"clientid":"pump-1","username":"pump-1","password":"right"}`
	d := open(t,
		hook.Hook{Name: "s", Kind: hook.EMQX}, hook.Hook{Name: "net", Kind: hook.EMQX, Networks: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}},
		hook.Hook{Name: "dev", Kind: hook.EMQX, Device: "broker-1"},
	)
	d.Hooks = append(d.Hooks, hook.Hook{Name: "open", Kind: hook.EMQX})
	broker, other := certificate(t, "broker-1"), certificate(t, "broker-2")
	for _, c := range []struct {
		name, hook string
		with       func(*http.Request)
		allow      bool
	}{
		{"bearer", "s", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+hookSecret) }, true},
		{"basic", "s", func(r *http.Request) { r.SetBasicAuth("any", hookSecret) }, true},
		{"nothing", "s", func(*http.Request) {}, false},
		{"wrong", "s", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+hookSecret+"x") }, false},
		{"network", "net", func(r *http.Request) { r.RemoteAddr = "198.51.100.9:1" }, true},
		{"other network", "net", func(r *http.Request) { r.RemoteAddr = "203.0.113.9:1" }, false},
		{"certificate", "dev", func(r *http.Request) { r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{broker}} }, true},
		{"other device", "dev", func(r *http.Request) { r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{other}} }, false},
		{"no certificate", "dev", func(*http.Request) {}, false},
		{"unguarded", "open", func(*http.Request) {}, false},
		{"certificate, after a client that calls itself like it", "dev", func(r *http.Request) { r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{broker}} }, true},
	} {
		question := right
		if strings.Contains(c.name, "calls itself") {
			question = `{"clientid":"caller:` + thumbprint(broker) + `","cert_pem":` + quoted(t, string(pemOf(other))) + `}`
			again := httptest.NewRequest(http.MethodPost, "/hooks/"+c.hook+"/authn", strings.NewReader(question))
			c.with(again)
			d.send(again)
		}
		r := httptest.NewRequest(http.MethodPost, "/hooks/"+c.hook+"/authn", strings.NewReader(question))
		c.with(r)
		status, _, body := d.send(r)
		if got := strings.Contains(body, `"result":"allow"`); status != http.StatusOK || got != c.allow {
			t.Errorf("%s: got %d %s, want allowed %v", c.name, status, body, c.allow)
		}
	}
	if status, _, _ := d.ask(http.MethodPost, "/hooks/nobody/authn", right); status != http.StatusNotFound {
		t.Errorf("a hook that there is not: got %d, want 404", status)
	}
	long := `{"clientid":"` + strings.Repeat("a", 300<<10) + `"}`
	if _, _, body := d.ask(http.MethodPost, "/hooks/s/authn", long); !strings.Contains(body, "deny") {
		t.Errorf("a question that is too long: got %.80s, want deny", body)
	}
}
