package hook_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/test/kit"
)

const natsConf = `
server_name: foreign
listen: "%[1]s"
jetstream { store_dir: "%[2]s" }
mqtt {
  listen: "%[3]s"
  tls { cert_file: "%[4]s", key_file: "%[5]s", ca_file: "%[6]s", verify: true }
}
accounts {
  AUTH { users: [ { user: auth, password: auth-password } ] }
  APP { jetstream: enabled }
  SYS { users: [ { user: sys, password: sys-password } ] }
}
system_account: SYS
authorization {
  timeout: 5
  auth_callout { issuer: %[7]s, account: AUTH, auth_users: [ auth, sys ], xkey: %[8]s }
}
`

// startNATS runs a NATS server that asks a hook, and returns its URLs for NATS and MQTT.
func startNATS(t *testing.T) (s *countersigntest.Server, url, mqttURL string, roots *x509.CertPool) {
	t.Helper()
	binary := buildNATS(t)
	natsPort, mqttPort := kit.FreePort(t), kit.FreePort(t)
	issuer, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	curve, err := nkeys.CreateCurveKeys()
	if err != nil {
		t.Fatal(err)
	}
	seed, public := keyPair(t, issuer)
	xseed, xpublic := keyPair(t, curve)
	url = "nats://" + loopback(natsPort)
	s = authority(t, config.Hook{
		Name: "nats", Kind: "nats",
		NATS: config.HookNATS{
			URL: url, User: "auth", Secret: secretFile(t, []byte("auth-password")),
			Seed: secretFile(t, seed), XKey: secretFile(t, xseed), Account: "APP",
		},
		Kick: config.HookKick{URL: url, User: "sys", Secret: secretFile(t, []byte("sys-password"))},
	})
	cert, key, pool := serverPair(t)
	path := filepath.Join(t.TempDir(), "nats.conf")
	text := fmt.Sprintf(natsConf, loopback(natsPort), t.TempDir(), loopback(mqttPort), cert, key, s.Endpoints().Roots, public, xpublic)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := program(t, binary, "-c", path).listens(mqttPort, patience); err != nil {
		t.Fatal(err)
	}
	return s, url, "ssl://" + loopback(mqttPort), pool
}

// buildNATS returns a nats-server built from the module that tools/go.mod pins: Debian's
// is older than the auth callout. Go keeps it in its cache, so that only the first run
// links it. It skips the test when the module cannot be fetched or built, unless peers
// are required.
func buildNATS(t *testing.T) string {
	t.Helper()
	kit.Programs(t, "go")
	build := exec.CommandContext(t.Context(), "go", "tool", "-modfile=../tools/go.mod", "-n", "nats-server")
	var said bytes.Buffer
	build.Stderr = &said
	out, err := build.Output()
	if err != nil {
		kit.Missing(t, "nats-server cannot be built: %v\n%s", err, &said)
	}
	return strings.TrimSpace(string(out))
}

func keyPair(t *testing.T, k nkeys.KeyPair) (seed []byte, public string) {
	t.Helper()
	seed, err := k.Seed()
	if err == nil {
		public, err = k.PublicKey()
	}
	if err != nil {
		t.Fatal(err)
	}
	return seed, public
}

func TestNATSAsksAndIsTold(t *testing.T) {
	t.Parallel()
	s, url, mqttURL, roots := startNATS(t)
	id := s.Enroll(t, "pump-1")
	other := s.Enroll(t, "pump-2")
	d := dialUntil(t, mqttURL, login{id: "pump-1"}, deviceTLS(id, roots))
	neighbor := dialUntil(t, mqttURL, login{id: "pump-2"}, deviceTLS(other, roots))

	var got inbox
	if !d.subscribe(t, "devices/pump-1/down/#", &got) {
		t.Error("its own topics are refused")
	}
	if d.subscribe(t, "devices/pump-2/down/#", &got) {
		t.Error("another's topics are granted")
	}
	if err := d.publish("devices/pump-1/up/t", "21"); err != nil {
		t.Errorf("publish: %v", err)
	}
	if err := neighbor.publish("devices/pump-1/down/x", "forged"); err != nil {
		t.Logf("publish out of its permissions: %v", err)
	}
	time.Sleep(200 * time.Millisecond) // what must not come would come by then
	if got.has("devices/pump-1/down/x forged") {
		t.Error("a device sent a command to another one")
	}

	took := d.revoked(t, s, "pump-1")
	t.Logf("NATS: session ended %s after the revocation", took.Round(time.Millisecond))
	if e := kicked(t, s, "pump-1"); e.Data["sessions"] != "1" {
		t.Errorf("session.kicked: got %v, want 1 session", e.Data)
	}
	if _, err := dial(t, mqttURL, login{id: "pump-1"}, deviceTLS(id, roots)); err == nil {
		t.Error("a revoked device came in again")
	}
	if !neighbor.IsConnectionOpen() {
		t.Error("the neighbor was disconnected too")
	}
	natsBySecret(t, s, url)
}

// natsBySecret connects a NATS client and not an MQTT one.
func natsBySecret(t *testing.T, s *countersigntest.Server, url string) {
	t.Helper()
	secret := withSecret(t, s, "node-1")
	for name, password := range map[string]string{"a wrong secret": "wrong", "a secret that NATS corrupts": "\xff\xfe" + secret} {
		if c, err := nats.Connect(url, nats.UserInfo("node-1", password), nats.NoReconnect()); err == nil {
			c.Close()
			t.Errorf("%s was let in", name)
		}
	}
	ended := make(chan time.Time, 1)
	c, err := nats.Connect(url, nats.UserInfo("node-1", secret), nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { ended <- time.Now() }))
	if err != nil {
		t.Fatalf("connect with its secret: %v", err)
	}
	defer c.Close()
	sub, err := c.SubscribeSync("devices.node-1.down.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil || !sub.IsValid() {
		t.Errorf("subscribe to its own subjects: %v", err)
	}
	began := time.Now()
	revoke(t, s, "node-1")
	select {
	case at := <-ended:
		t.Logf("NATS client: ended %s after the revocation", at.Sub(began).Round(time.Millisecond))
	case <-time.After(patience):
		t.Error("the connection goes on after the revocation")
	}
}
