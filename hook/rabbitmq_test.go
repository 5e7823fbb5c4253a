package hook_test

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/test/kit"
)

const (
	rabbitServer = "/usr/lib/rabbitmq/bin/rabbitmq-server"
	// rabbitStart is how long it may take to start; some 6 s on an idle machine.
	rabbitStart = 90 * time.Second
	// rabbitTries is how often it is started on other ports.
	rabbitTries = 3

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

// rabbit is a node of RabbitMQ that asks an authority.
type rabbit struct {
	s                      *countersigntest.Server
	management, plain, tls int
	roots                  *x509.CertPool // of the node
	id, neighborID         *sdk.Identity
}

// startRabbit runs an authority and a node that asks it. RabbitMQ cannot choose its
// own ports, and takes seconds to open them: where one was taken meanwhile, it is
// started anew on others.
func startRabbit(t *testing.T) *rabbit {
	t.Helper()
	for try := 1; ; try++ {
		r := &rabbit{management: kit.FreePort(t), plain: kit.FreePort(t), tls: kit.FreePort(t)}
		err := r.start(t)
		if err == nil {
			return r
		}
		if try == rabbitTries || !portTaken.MatchString(err.Error()) {
			t.Fatal(err)
		}
	}
}

// portTaken is what RabbitMQ and epmd say of a port that is in use.
var portTaken = regexp.MustCompile(`eaddrinuse|[Aa]ddress already in use|port [0-9]+ is in use`)

func (r *rabbit) start(t *testing.T) error {
	t.Helper()
	const secret = "a-secret-of-rabbitmq-0123456789"
	r.s = authority(t, config.Hook{
		Name: "rabbit", Kind: "rabbitmq", Secret: secretFile(t, []byte(secret)), Vouch: true,
		Kick: config.HookKick{URL: "http://" + loopback(r.management), User: "countersign", Secret: secretFile(t, []byte("management-password"))},
	})
	r.id, r.neighborID = r.s.Enroll(t, "meter-1"), r.s.Enroll(t, "meter-2")
	cert, key, roots := serverPair(t)
	r.roots = roots
	chain := wholeChain(t, r.s.Endpoints().Roots, r.neighborID.Path())
	hooks := strings.Replace(r.s.Endpoints().Hook, "http://", "http://rabbit:"+secret+"@", 1) + "/hooks/rabbit"

	dir, epmd := t.TempDir(), kit.FreePort(t)
	for name, text := range map[string]string{
		"rabbitmq.conf": fmt.Sprintf(rabbitConf, r.management, r.plain, r.tls, cert, key, chain, hooks),
		"plugins":       "[rabbitmq_mqtt,rabbitmq_management,rabbitmq_auth_backend_http].",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A node of its own: name, ports, folders, epmd.
	var env []string
	for name, value := range map[string]string{
		"HOME": dir, "ERL_EPMD_PORT": strconv.Itoa(epmd), "ERL_EPMD_ADDRESS": "127.0.0.1",
		"RABBITMQ_NODENAME": "countersign@localhost", "RABBITMQ_DIST_PORT": strconv.Itoa(kit.FreePort(t)),
		"RABBITMQ_MNESIA_BASE": filepath.Join(dir, "mnesia"), "RABBITMQ_LOG_BASE": filepath.Join(dir, "log"), "RABBITMQ_LOGS": "-",
		"RABBITMQ_CONFIG_FILE": filepath.Join(dir, "rabbitmq.conf"), "RABBITMQ_ENABLED_PLUGINS_FILE": filepath.Join(dir, "plugins"),
		"RABBITMQ_CONF_ENV_FILE": "/dev/null",
		// Schedulers that wait for work in a loop would take the processor from everything else.
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
	} {
		env = append(env, name+"="+value)
	}
	if err := programIn(t, env, "epmd", "-address", "127.0.0.1", "-port", strconv.Itoa(epmd)).listens(epmd, patience); err != nil {
		return err
	}
	node := programIn(t, env, rabbitServer)
	for _, port := range []int{r.management, r.tls, r.plain} {
		if err := node.listens(port, rabbitStart); err != nil {
			return err
		}
	}
	return nil
}

func TestRabbitMQAsksAndIsTold(t *testing.T) {
	t.Parallel()
	kit.Programs(t, rabbitServer, "epmd")
	r := startRabbit(t)
	s, id, neighborID, roots := r.s, r.id, r.neighborID, r.roots
	url := "ssl://" + loopback(r.tls)
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
	bySecret(t, s, "tcp://"+loopback(r.plain))
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

// wholeChain writes the root and the certificates below it into one file: Erlang wants all
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
