package hook_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
)

const (
	rabbitServer = "/usr/lib/rabbitmq/bin/rabbitmq-server"
	// rabbitStart is how long it may take to start; some 6 s on an idle machine.
	rabbitStart = 90 * time.Second

	rabbitConf = `
listeners.tcp = none
default_user = countersign
default_pass = management-password
management.tcp.ip = 127.0.0.1
management.tcp.port = %[1]d
mqtt.allow_anonymous = false
mqtt.listeners.tcp.1 = 127.0.0.1:%[2]d
mqtt.listeners.ssl.1 = 127.0.0.1:%[3]d
mqtt.ssl_cert_login = true
ssl_cert_login_from = common_name
ssl_options.certfile = %[4]s
ssl_options.keyfile = %[5]s
ssl_options.cacertfile = %[6]s
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_options.depth = 2
auth_backends.1 = internal
auth_backends.2 = http
auth_http.http_method = post
auth_http.user_path = %[7]s/user
auth_http.vhost_path = %[7]s/vhost
auth_http.resource_path = %[7]s/resource
auth_http.topic_path = %[7]s/topic
`
)

// startRabbit runs a node of its own: name, ports, folders, epmd.
func startRabbit(t *testing.T, conf string, management int) {
	t.Helper()
	dir, epmd := t.TempDir(), freePort(t)
	for name, text := range map[string]string{"rabbitmq.conf": conf, "plugins": "[rabbitmq_mqtt,rabbitmq_management,rabbitmq_auth_backend_http]."} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program(t, "epmd", "-address", "127.0.0.1", "-port", strconv.Itoa(epmd))
	for name, value := range map[string]string{
		"HOME": dir, "ERL_EPMD_PORT": strconv.Itoa(epmd), "ERL_EPMD_ADDRESS": "127.0.0.1",
		"RABBITMQ_NODENAME": "countersign@localhost", "RABBITMQ_DIST_PORT": strconv.Itoa(freePort(t)),
		"RABBITMQ_MNESIA_BASE": filepath.Join(dir, "mnesia"), "RABBITMQ_LOG_BASE": filepath.Join(dir, "log"), "RABBITMQ_LOGS": "-",
		"RABBITMQ_CONFIG_FILE": filepath.Join(dir, "rabbitmq.conf"), "RABBITMQ_ENABLED_PLUGINS_FILE": filepath.Join(dir, "plugins"),
		"RABBITMQ_CONF_ENV_FILE": "/dev/null", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
	} {
		t.Setenv(name, value)
	}
	program(t, rabbitServer)
	url := "http://" + loopback(management) + "/api/overview"
	for began := time.Now(); time.Since(began) < rabbitStart; time.Sleep(100 * time.Millisecond) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := http.DefaultClient.Do(r); err == nil {
			_ = resp.Body.Close()
			return
		}
	}
	t.Fatalf("RabbitMQ did not start within %s", rabbitStart)
}

func TestRabbitMQAsksAndIsTold(t *testing.T) {
	need(t, rabbitServer, "epmd")
	const secret = "a-secret-of-rabbitmq-0123456789"
	management, plain, tls := freePort(t), freePort(t), freePort(t)
	s := authority(t, config.Hook{
		Name: "rabbit", Kind: "rabbitmq", Secret: secretFile(t, []byte(secret)), Vouch: true,
		Kick: config.HookKick{URL: "http://" + loopback(management), User: "countersign", Secret: secretFile(t, []byte("management-password"))},
	})
	id, neighborID := s.Enroll(t, "meter-1"), s.Enroll(t, "meter-2")
	cert, key, roots := serverPair(t)
	chain := wholeChain(t, s.Endpoints().Roots, neighborID.Path())
	hooks := strings.Replace(s.Endpoints().Hook, "http://", "http://rabbit:"+secret+"@", 1) + "/hooks/rabbit"
	startRabbit(t, fmt.Sprintf(rabbitConf, management, plain, tls, cert, key, chain, hooks), management)

	url := "ssl://" + loopback(tls)
	d := dialUntil(t, url, login{id: "meter-1"}, deviceTLS(id, roots))
	neighbor := dialUntil(t, url, login{id: "meter-2"}, deviceTLS(neighborID, roots))
	var got inbox
	if !d.subscribe(t, "devices/meter-1/down/#", &got) {
		t.Error("its own topics are refused")
	}
	if err := d.publish("devices/meter-1/up/t", "21"); err != nil || !d.IsConnectionOpen() {
		t.Errorf("publish: %v", err)
	}
	took := d.revoked(t, s, "meter-1")
	t.Logf("RabbitMQ: session ended %s after the revocation", took.Round(time.Millisecond))
	if e := kicked(t, s, "meter-1"); e.Data["sessions"] != "1" {
		t.Errorf("session.kicked: got %v, want 1 session", e.Data)
	}
	if _, err := dial(t, url, login{id: "meter-1"}, deviceTLS(id, roots)); err == nil {
		t.Error("a revoked device came in again")
	}
	bySecret(t, s, "tcp://"+loopback(plain))
	if !neighbor.IsConnectionOpen() {
		t.Error("the neighbor was disconnected too")
	}
	if neighbor.subscribe(t, "devices/meter-1/down/#", &got) {
		t.Error("another's topics are granted")
	}
}

// bySecret connects a device with its secret, to a listener without client certificates.
func bySecret(t *testing.T, s *countersigntest.Server, url string) {
	t.Helper()
	secret := withSecret(t, s, "node-1")
	if _, err := dial(t, url, login{"node-1", "node-1", "wrong"}, nil); err == nil {
		t.Error("a wrong secret was let in")
	}
	if _, err := dial(t, url, login{"meter-2", "meter-2", ""}, nil); err == nil {
		t.Error("a name without a secret was let in")
	}
	d, err := dial(t, url, login{"node-1", "node-1", secret}, nil)
	if err != nil {
		t.Fatalf("connect with its secret: %v", err)
	}
	if !d.subscribe(t, "devices/node-1/down/#", &inbox{}) {
		t.Error("its own topics are refused")
	}
	took := d.revoked(t, s, "node-1")
	t.Logf("session by secret ended %s after the revocation", took.Round(time.Millisecond))
}

// wholeChain writes the root and what stands below it into one file: Erlang wants all
// of them.
func wholeChain(t *testing.T, rootsFile string, path [][]byte) string {
	t.Helper()
	text, err := os.ReadFile(rootsFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range path[1:] {
		text = append(text, pemCertificate(der)...)
	}
	name := filepath.Join(t.TempDir(), "chain.pem")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
