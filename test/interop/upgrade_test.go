package interop

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// The archives in testdata/upgrade are data folders and clients' files as a released
// server left them, named by the version of the schema. The device certificates have
// no end and the root key is wrapped with upgradePassphrase.
const upgradePassphrase = "upgrade-root-passphrase-1bfc"

func TestDatabaseOfAnEarlierVersionGoesOnWorking(t *testing.T) {
	kit.Programs(t, "mosquitto_pub", "mosquitto_sub", "openssl", "curl", "tar")
	t.Setenv("COUNTERSIGN_TEST_PASSPHRASE", upgradePassphrase)
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			dir := shortDir(t)
			unpack := exec.CommandContext(t.Context(), "tar", "-xzf", filepath.Join("testdata/upgrade", "8-"+kind+".tar.gz"), "-C", dir)
			if out, err := unpack.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			more := "root_passphrase: env:COUNTERSIGN_TEST_PASSPHRASE"
			if kind == "postgres" {
				kit.Programs(t, "psql")
				u := storetest.PostgresURL(t)
				load := exec.CommandContext(t.Context(), "psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", u, "-f", filepath.Join(dir, "data/dump.sql"))
				if out, err := load.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				more += "\ndatabase: " + u
			}
			config := filepath.Join(dir, "countersign.yaml")
			writeConfig(t, config, filepath.Join(dir, "data"), more)
			for range 2 { // the second start finds what the first one upgraded
				s := startSite(t, filepath.Join(dir, "data"), "server", "run", "--config", config)
				checkUpgraded(t, s, filepath.Join(dir, "client"))
				if err := s.stop(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// checkUpgraded looks whether each identity of before is served as before.
func checkUpgraded(t *testing.T, s *site, client string) {
	t.Helper()
	if v, err := s.admin.VerifyLog(t.Context()); err != nil || !v.Intact {
		t.Errorf("the log: got %+v, %v", v, err)
	}
	secret, err := os.ReadFile(filepath.Join(client, "meter-1.secret"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		device string
		args   []string
		in     bool
	}{
		{"pump-1", withCert(client, "pump-1c"), true},
		{"pump-2", withCert(client, "pump-2"), true},
		{"pump-3", withCert(client, "pump-3"), false}, // suspended
		{"pump-4", withCert(client, "pump-4"), false}, // revoked
		{"pump-5", withCert(client, "pump-5"), false}, // retired
		{"acme-7", withCert(client, "acme-7"), true},  // by its factory certificate
		{"meter-1", []string{"-u", "meter-1", "-P", strings.TrimSpace(string(secret))}, true},
	} {
		out, err := publish(t, s, tt.device, tt.args)
		if (err == nil) != tt.in {
			t.Errorf("%s: got in: %v, want %v\n%s", tt.device, err == nil, tt.in, out)
		}
	}
	checkUpgradedStatus(t, s, client)

	// The device that was suspended comes back, renews, and loses it all again.
	if _, err := s.admin.Reactivate(t.Context(), "pump-3", api.Act{}); err != nil {
		t.Fatalf("reactivate: %v", err)
	}
	if out, err := publish(t, s, "pump-3", withCert(client, "pump-3")); err != nil {
		t.Errorf("pump-3 after reactivation: %v\n%s", err, out)
	}
	pasted(t, client, fmt.Sprintf(`
openssl ecparam -name prime256v1 -genkey -noout -out next.key
openssl req -new -key next.key -subj /CN=pump-2 -out next.csr
curl --fail-with-body -sS --cacert %[1]s --cert pump-2.pem --key pump-2.key -H 'Content-Type: application/pkcs10' \
  --data-binary @next.csr -o next.pem %[2]s/api/v1/renew`, s.ends.Roots, s.ends.Enroll))
	if out, err := publish(t, s, "pump-2", withCert(client, "next")); err != nil {
		t.Errorf("pump-2 with its renewed certificate: %v\n%s", err, out)
	}
	pasted(t, client, "cp next.key pump-2.key && cp next.pem pump-2.pem")
	if _, err := s.admin.Suspend(t.Context(), "pump-3", api.Act{Note: "lost again"}); err != nil {
		t.Fatalf("suspend: %v", err)
	}
	if out, err := publish(t, s, "pump-3", withCert(client, "pump-3")); err == nil {
		t.Errorf("pump-3 got in although it is suspended\n%s", out)
	}
}

func withCert(client, name string) []string {
	return []string{"--cert", filepath.Join(client, name+".pem"), "--key", filepath.Join(client, name+".key")}
}

// publish connects as a device and publishes one report at QoS 1.
func publish(t *testing.T, s *site, device string, args []string) (string, error) {
	t.Helper()
	u, err := url.Parse(s.ends.MQTT)
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{
		"-V", "5", "-h", u.Hostname(), "-p", u.Port(), "--cafile", s.ends.Roots, "-i", device,
		"-t", "devices/" + device + "/up/x", "-m", "hello", "-q", "1",
	}, args...)
	out, err := exec.CommandContext(t.Context(), "mosquitto_pub", args...).CombinedOutput()
	return string(out), err
}

// checkUpgradedStatus looks for the revoked certificate in the list.
func checkUpgradedStatus(t *testing.T, s *site, client string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(client, "certs.json"))
	if err != nil {
		t.Fatal(err)
	}
	var certs []api.Certificate
	if err := json.Unmarshal(text, &certs); err != nil {
		t.Fatal(err)
	}
	list := pasted(t, client, "curl --fail -sS "+s.ends.Status+"/crl/issuing/0.crl | openssl crl -inform DER -noout -text")
	found := 0
	for _, c := range certs {
		listed := strings.Contains(list, strings.ToUpper(c.Serial))
		if c.Issuer == "issuing" && c.State == "revoked" {
			if found++; !listed {
				t.Errorf("certificate %s of %s was revoked before the upgrade and is not on the list", c.Serial, c.Device)
			}
		}
	}
	if found == 0 {
		t.Error("the archive has no revoked certificate: the test looks for nothing")
	}
}
