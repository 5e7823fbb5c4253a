package mqtt_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/test/kit"
)

// TestABridgeReadsItsAnswer tries the protocol levels of bridges, each with the form of
// CONNACK that such a client can read.
func TestABridgeReadsItsAnswer(t *testing.T) {
	g := start(t, engine{})
	for _, tt := range []struct {
		what, name string
		level      byte
		code       byte
	}{
		{"3.1.1 as a bridge", "MQTT", 0x84, 0},
		{"3.1 as a bridge", "MQIsdp", 0x83, 0},
		{"3.1", "MQIsdp", 3, 0},
		{"4 by the name of 3.1", "MQIsdp", 4, 1},
		{"5 as a bridge, which no broker sends", "MQTT", 0x85, 1},
	} {
		d := g.dial(t, "dev")
		d.send(pkt(0x10, str(tt.name), []byte{tt.level, 2, 0, 60}, str("dev")))
		d.expect(tt.what, []byte{0x20, 2, 0, tt.code})
		if tt.code != 0 {
			d.gone(tt.what, 0)
		}
	}
	// The state of the bridge is a will where no device may publish: it is left out.
	d := g.dial(t, "dev")
	d.send(pkt(0x10, str("MQTT"), []byte{0x84, 0x26, 0, 60}, str("dev"), str("$SYS/broker/connection/x/state"), str("0")))
	d.expect("with the will of a bridge", []byte{0x20, 2, 0, 0})
	d = g.dial(t, "dev")
	d.send(pkt(0x10, str("MQTT"), []byte{4, 0x26, 0, 60}, str("dev"), str("$SYS/broker/connection/x/state"), str("0")))
	d.expect("the same of a client", []byte{0x20, 2, 0, 5})
}

// TestMosquittoBridges has a mosquitto with the settings of its manual page for a
// bridge pass messages both ways.
func TestMosquittoBridges(t *testing.T) {
	kit.Programs(t, "mosquitto", "mosquitto_pub", "mosquitto_sub")
	engines := map[string]func() engine{
		"builtin": func() engine { return engine{} },
		"broker": func() engine {
			return relayTo(startMosquitto(t, "allow_anonymous true\n"))
		},
	}
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			g := start(t, engine())
			files := g.files(t, g.issue("site", time.Hour))
			dir := t.TempDir()
			for _, f := range []string{files[1], files[3], files[5]} { // mosquitto reads them as a user of its own
				b := kit.Must(os.ReadFile(f))
				if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for up := dir; up != "/tmp" && up != "/"; up = filepath.Dir(up) {
				_ = os.Chmod(up, 0o755)
			}
			local := startMosquitto(t, fmt.Sprintf(`allow_anonymous true
connection countersign
address %s
remote_clientid site
bridge_cafile %[2]s/root.pem
bridge_certfile %[2]s/cert.pem
bridge_keyfile %[2]s/key.pem
topic # out 1 site/ devices/site/up/
topic # in 1 site/ devices/site/down/
`, g.addr, dir))
			up := make(chan string, 10)
			listen(t, g, "devices/site/up/#", up)
			kit.Eventually(t, "the bridge", func() bool { return g.Index.Len() == 1 })
			if s := g.Index.Sessions()[0]; s.Device != "site" || s.Protocol != "MQTT 3.1.1 bridge" {
				t.Errorf("session of the bridge: got %+v", s)
			}
			host, port, _ := strings.Cut(local, ":")
			out, wait := run(t, "stdbuf", "-oL", "mosquitto_sub", "-h", host, "-p", port, "-d", "-q", "1", "-t", "site/order", "-C", "1", "-F", "got %p")
			kit.Eventually(t, "SUBACK", func() bool { return strings.Contains(out.String(), "Subscribed") })
			if b, err := exec.Command("mosquitto_pub", "-h", host, "-p", port, "-q", "1", "-t", "site/report", "-m", "hello").CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, b)
			}
			select {
			case m := <-up:
				if m != "devices/site/up/report hello" {
					t.Errorf("up: got %q", m)
				}
			case <-time.After(10 * time.Second):
				t.Error("nothing came up")
			}
			deadline := time.Now().Add(10 * time.Second)
			for !strings.Contains(out.String(), "got ") && time.Now().Before(deadline) { // until the bridge has subscribed
				g.send(t, "devices/site/down/order", []byte("stop"))
				time.Sleep(50 * time.Millisecond)
			}
			_ = wait()
			if !strings.Contains(out.String(), "got stop") {
				t.Errorf("down: got %s", out.String())
			}
		})
	}
}
