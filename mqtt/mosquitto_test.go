package mqtt_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/test/kit"
)

// sub starts mosquitto_sub for a device and waits until it has its SUBACK.
func (g *gateway) sub(t testing.TB, version string, args ...string) (*buffer, func() error) {
	t.Helper()
	base := []string{"-h", "127.0.0.1", "-p", g.port(), "-V", version, "-d", "-q", "1"}
	out, wait := run(t, "stdbuf", append(append([]string{"-oL", "mosquitto_sub"}, base...), args...)...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s", out)
		}
	})
	kit.Eventually(t, "SUBACK", func() bool { return strings.Contains(out.String(), "Subscribed") })
	return out, wait
}

func TestMosquittoClients(t *testing.T) {
	kit.Programs(t, "mosquitto_pub", "mosquitto_sub")
	g := start(t, engine{})
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			id := "pump.7-" + version
			files := g.files(t, g.issue(id, time.Hour))
			out, wait := g.sub(t, version, append(files, "-i", id, "-t", "devices/"+id+"/down/#", "-F", "got %t %p", "-C", "2")...)
			g.send(t, "devices/"+id+"/down/a.b/c", []byte("one"))
			g.send(t, "devices/other/down/x", []byte("not for you"))
			g.send(t, "devices/"+id+"/down", []byte("two"))
			if err := wait(); err != nil {
				t.Errorf("mosquitto_sub: %v", err)
			}
			for _, want := range []string{"got devices/" + id + "/down/a.b/c one", "got devices/" + id + "/down two"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("mosquitto_sub: %q is missing in\n%s", want, out)
				}
			}
			if strings.Contains(out.String(), "not for you") {
				t.Errorf("mosquitto_sub got another's message:\n%s", out)
			}
		})
	}
}

func TestRevokeMakesMosquittoLeaveSayingWhy(t *testing.T) {
	kit.Programs(t, "mosquitto_sub")
	g := start(t, engine{})
	for _, version := range []string{"mqttv311", "mqttv5"} {
		id := "dev-" + version
		files := g.files(t, g.issue(id, time.Hour))
		args := append(slices.Clip(files), "-i", id, "-t", "devices/"+id+"/down/#")
		out, wait := g.sub(t, version, args...)
		g.guard.refuse(id, countersign.CertIsRevoked)
		began := time.Now()
		if n := g.Index.Cut(countersign.Cut{Device: id, Reason: "key compromised"}); n != 1 {
			t.Errorf("Cut: got %d sessions, want 1", n)
		}
		if d := time.Since(began); d > 50*time.Millisecond {
			t.Errorf("Cut took %v, want under 50ms", d)
		}
		_ = wait() // 3.1.1 comes again and is refused; 5 leaves on DISCONNECT
		if version == "mqttv5" && !strings.Contains(out.String(), "Received DISCONNECT (152)") {
			t.Errorf("mosquitto_sub was not told 0x98:\n%s", out)
		}
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("mosquitto_sub left after %v", d)
		}
		again, wait := run(t, "mosquitto_pub", append(slices.Clip(files), "-h", "127.0.0.1", "-p", g.port(), "-V", version,
			"-i", id, "-t", "devices/"+id+"/up/x", "-m", "x")...)
		if err := wait(); err == nil || !strings.Contains(strings.ToLower(again.String()), "not authori") {
			t.Errorf("reconnect: got %v, %q; want not authorized", err, again)
		}
		if got := g.guard.reasons(id); len(got) != 1 || got[0] != "cut: key compromised" {
			t.Errorf("Closed: got %q", got)
		}
	}
}
