package hook_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/test/kit"
)

const (
	dynsecPlugin = "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so"

	mosquittoConf = `
user root
pid_file %[1]s/mosquitto.pid
plugin %[9]s
plugin_opt_config_file %[1]s/dynsec.json
acl_file %[1]s/acl
listener %[2]d 127.0.0.1
listener %[3]d 127.0.0.1
certfile %[4]s
keyfile %[5]s
cafile %[6]s
crlfile %[7]s
require_certificate true
use_identity_as_username true
`
	mosquittoACL = `
pattern write devices/%u/up/#
pattern read devices/%u/down/#
`
)

func TestMosquittoIsTold(t *testing.T) {
	t.Parallel()
	kit.Programs(t, "mosquitto", "mosquitto_ctrl", dynsecPlugin)
	dir, control, port := t.TempDir(), kit.FreePort(t), kit.FreePort(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	crl := filepath.Join(dir, "crl.pem")
	s := authority(t, config.Hook{
		Name: "mosq", Kind: "mosquitto",
		CRL:  config.HookCRL{File: crl, PID: filepath.Join(dir, "mosquitto.pid")},
		Kick: config.HookKick{URL: "mqtt://" + loopback(control), User: "countersign", Secret: secretFile(t, []byte("dynsec-password"))},
	})
	id, neighborID := s.Enroll(t, "valve-1"), s.Enroll(t, "valve-2")
	eventually(t, "the file of CRLs", func() bool { _, err := os.Stat(crl); return err == nil })

	cert, key, roots := serverPair(t)
	if out, err := exec.CommandContext(t.Context(), "mosquitto_ctrl", "dynsec", "init", filepath.Join(dir, "dynsec.json"), "countersign", "dynsec-password").CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_ctrl: %v\n%s", err, out)
	}
	conf := fmt.Sprintf(mosquittoConf, dir, control, port, cert, key, s.Endpoints().Roots, crl, "", dynsecPlugin)
	for name, text := range map[string]string{"mosquitto.conf": conf, "acl": mosquittoACL} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := program(t, "mosquitto", "-v", "-c", filepath.Join(dir, "mosquitto.conf")).listens(port, patience); err != nil {
		t.Fatal(err)
	}

	url := "ssl://" + loopback(port)
	d := dialUntil(t, url, login{id: "valve-1"}, deviceTLS(id, roots))
	neighbor := dialUntil(t, url, login{id: "valve-2"}, deviceTLS(neighborID, roots))
	var got inbox
	if !d.subscribe(t, "devices/valve-1/down/#", &got) {
		t.Error("its own topics are refused")
	}
	if err := neighbor.publish("devices/valve-1/down/x", "forged"); err != nil {
		t.Error(err)
	}
	if err := neighbor.publish("devices/valve-2/up/x", "21"); err != nil {
		t.Error(err)
	}
	time.Sleep(200 * time.Millisecond) // what must not come would come by then
	if got.has("devices/valve-1/down/x forged") {
		t.Error("a device sent a command to another one")
	}

	took := d.revoked(t, s, "valve-1")
	t.Logf("Mosquitto: session ended %s after the revocation", took.Round(1e6))
	kicked(t, s, "valve-1")
	eventually(t, "refusal by the CRL or the plug-in", func() bool {
		_, err := dial(t, url, login{id: "valve-1"}, deviceTLS(id, roots))
		return err != nil
	})
	if !neighbor.IsConnectionOpen() {
		t.Error("the neighbor was disconnected too")
	}
	dialUntil(t, url, login{id: "valve-1"}, deviceTLS(s.Enroll(t, "valve-1"), roots)) // with a new identity it is welcome

	suspend(t, s, "valve-2")
	eventually(t, "the end of the suspended device's session", func() bool { return !neighbor.IsConnectionOpen() })
	reactivate(t, s, "valve-2")
	dialUntil(t, url, login{id: "valve-2"}, deviceTLS(neighborID, roots))
}
