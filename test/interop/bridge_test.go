package interop

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/countersign-iot/countersign/test/kit"
)

// localBroker is a mosquitto of a site with a bridge to the server.
type localBroker struct {
	*process
	port   string
	config string
}

// newLocalBroker starts one that publishes to talk/up/ what is local in up/, and the
// other way for down/.
func newLocalBroker(t *testing.T, k *talk, version string) *localBroker {
	t.Helper()
	b := &localBroker{port: fmt.Sprint(kit.FreePort(t))}
	dir := t.TempDir()
	b.config = filepath.Join(dir, "mosquitto.conf")
	files := k.files["bridge"]
	write(t, b.config, fmt.Sprintf(`user root
listener %s 127.0.0.1
allow_anonymous true
persistence true
persistence_location %s/
connection countersign
address %s
remote_clientid bridge
bridge_protocol_version %s
bridge_cafile %s
bridge_certfile %s
bridge_keyfile %s
cleansession false
restart_timeout 1
notifications false
try_private true
topic # out 2 up/ talk/up/
topic # in 2 down/ talk/down/
`, b.port, dir, k.addr, version, k.ends.Roots, files.Cert, files.Key))
	b.start(t)
	return b
}

func (b *localBroker) start(t *testing.T) {
	t.Helper()
	p, err := launch(exec.Command("mosquitto", "-v", "-c", b.config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	b.process = p
	if err := p.says(regexp.MustCompile("mosquitto version .* running")); err != nil {
		t.Fatal(err)
	}
}

// pub publishes numbers at the site.
func (b *localBroker) pub(t *testing.T, from, to int) {
	t.Helper()
	for n := from; n <= to; n++ {
		run(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", b.port, "-t", "up/x", "-q", "2", "-m", fmt.Sprint(n))
	}
}

// sub receives at the site with a kept session; with count 0 it subscribes and leaves.
func (b *localBroker) sub(t *testing.T, count int) []string {
	t.Helper()
	args := []string{"-h", "127.0.0.1", "-p", b.port, "-t", "down/#", "-q", "2", "-c", "-i", "local"}
	if count == 0 {
		return run(t, "mosquitto_sub", append(args, "-E")...)
	}
	return run(t, "mosquitto_sub", append(args, "-C", fmt.Sprint(count), "-W", fmt.Sprint(int(patience/time.Second)))...)
}

// TestMosquittoBridgesOverRestarts has a mosquitto bridge in both directions while the
// server ends and starts: what one side published while the other was away arrives once.
func TestMosquittoBridgesOverRestarts(t *testing.T) {
	for _, tt := range []struct {
		version  string
		powerCut bool
		kept     bool // with MQTT 5 the bridge asks for no session that outlives its connection
	}{{"mqttv311", true, true}, {"mqttv311", false, true}, {"mqttv50", true, false}} {
		t.Run(fmt.Sprintf("%s, power cut %v", tt.version, tt.powerCut), func(t *testing.T) {
			t.Parallel()
			kit.Programs(t, "mosquitto", "mosquitto_pub", "mosquitto_sub")
			k := newTalk(t, "", "bridge", "publisher", "center")
			center := foreign{device: "center", topic: "talk/up/#"}
			receive := mosquittoReceives("5")
			receive(t, k, center, 0)
			b := newLocalBroker(t, k, tt.version)
			b.sub(t, 0)
			if !eventually(func() bool { return k.subscribed() == 2 }) {
				t.Fatalf("the bridge does not subscribe:\n%s", b.out.String())
			}
			b.pub(t, 1, 3)
			k.say(t, "talk/down/x", 1, 3)
			k.end(tt.powerCut)
			b.pub(t, 4, 6)
			k.start()
			b.pub(t, 7, 9)
			if up, want := strings.Join(receive(t, k, center, 9), " "), "1 2 3 4 5 6 7 8 9"; up != want {
				t.Errorf("up: got %q, want %q", up, want)
			}
			if !eventually(func() bool { return k.subscribed() == 2 }) {
				t.Fatalf("the bridge does not come back:\n%s", b.out.String())
			}
			k.say(t, "talk/down/x", 4, 6)
			want := "1 2 3 4 5 6"
			if tt.kept { // the site is away, and the server ends
				if err := b.stop(); err != nil {
					t.Fatal(err)
				}
				k.say(t, "talk/down/x", 7, 9)
				k.restart(tt.powerCut)
				k.say(t, "talk/down/x", 10, 12)
				b.start(t)
				want += " 7 8 9 10 11 12"
			}
			if down := strings.Join(b.sub(t, len(strings.Fields(want))), " "); down != want {
				t.Errorf("down: got %q, want %q\n%s", down, want, b.out.String())
			}
		})
	}
}

// TestWillsOutliveTheServer has clients break off that left a will with a delay. Their
// wills are published after the delay, also where the server was away when it ended.
func TestWillsOutliveTheServer(t *testing.T) {
	for _, powerCut := range []bool{false, true} {
		t.Run(map[bool]string{false: "SIGTERM", true: "SIGKILL"}[powerCut], func(t *testing.T) {
			t.Parallel()
			const short, long, never = 1, 6, 3000
			k := newTalk(t, "", "watcher", "short", "long", "never")
			w, err := k.dial("watcher", kept("watcher", true))
			if err != nil {
				t.Fatal(err)
			}
			if err := w.subscribe(sub("talk/will/#", 1)); err != nil {
				t.Fatal(err)
			}
			_ = w.Close()
			broke := time.Now()
			for device, delay := range map[string]uint32{"short": short, "long": long, "never": never} {
				hello := kept(device, true)
				hello.WillFlag, hello.WillTopic, hello.WillMessage, hello.WillQOS = true, "talk/will/"+device, []byte(device), 1
				hello.WillProperties = &packets.Properties{WillDelayInterval: new(delay)}
				c, err := k.dial(device, hello)
				if err != nil {
					t.Fatal(err)
				}
				broke = time.Now()
				_ = c.Close()
			}
			// The end of the last one is on record when the answer to another commit is there.
			if !eventually(func() bool { return k.live() == 0 }) {
				t.Fatal("the clients do not end")
			}
			c, err := k.dial("watcher", kept("watcher/other", true))
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
			k.end(powerCut)
			time.Sleep(time.Until(broke.Add(short*time.Second + glance)))
			k.start()
			if w, err = k.dial("watcher", kept("watcher", false)); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = w.Close() }()
			_ = w.SetDeadline(time.Now().Add(patience))
			for _, want := range []string{"short", "long"} {
				p, err := packets.ReadPacket(w)
				if err != nil {
					t.Fatalf("the will of %s does not come: %v", want, err)
				}
				m, ok := p.Content.(*packets.Publish)
				if !ok || string(m.Payload) != want {
					t.Fatalf("got %v, want the will of %s", p, want)
				}
				if after := time.Since(broke); want == "long" && after < (long-1)*time.Second {
					t.Errorf("the will of %s came after %v, want %d s", want, after, long)
				}
				if err := w.send(&packets.Puback{PacketID: m.PacketID, Properties: &packets.Properties{}}); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
