package interop

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/test/kit"
)

// talkPolicy lets each device use the topics of the tests on messages.
const talkPolicy = `statements:
  - {id: in, effect: allow, actions: [connect]}
  - {id: talk, effect: allow, actions: [publish, subscribe, receive, retain], topics: ["talk/#", "state/#", "mark/#"]}
`

// generous bounds what a device of a test may queue and send: these tests are about
// loss, and what a bound drops is not lost.
const generous = "engine: {queue_messages: 200000, queue_size: 512MiB"

// talk is a server process and the devices that exchange messages through it. Its MQTT
// listener has the same address after each start.
type talk struct {
	*site
	t      *testing.T
	dir    string
	config string
	addr   string // of the MQTT listener
	web    string // of the WebSocket listener
	ids    map[string]*sdk.Identity
	files  map[string]countersigntest.Files
}

// newTalk founds and starts a server whose configuration ends with more, and enrolls
// devices.
func newTalk(t *testing.T, more string, devices ...string) *talk {
	t.Helper()
	k := prepare(t, shortDir(t), more)
	found(t, k.config)
	k.start()
	if _, err := k.admin.ApplyPolicy(t.Context(), "default", api.ApplyPolicy{PolicySource: api.PolicySource{Source: talkPolicy}, Note: "test"}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.admin.PatchRules(t.Context(), "default", json.RawMessage(`{"budget": {"publishes": 100000}}`), false); err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		k.enroll(d)
	}
	return k
}

// prepare writes the configuration of a server on addresses that it keeps.
func prepare(t *testing.T, dir, more string) *talk {
	t.Helper()
	k := &talk{t: t, dir: dir, ids: map[string]*sdk.Identity{}, files: map[string]countersigntest.Files{}}
	k.addr = fmt.Sprintf("127.0.0.1:%d", kit.FreePort(t))
	k.web = fmt.Sprintf("127.0.0.1:%d", kit.FreePort(t))
	k.config = filepath.Join(k.dir, "countersign.yaml")
	text := fmt.Sprintf(`dir: %s
names: [127.0.0.1, localhost]
listeners: {enroll: "127.0.0.1:0", mqtt: %q, websocket: %q, api: "127.0.0.1:0", status: "127.0.0.1:0"}
%s
`, k.dir, k.addr, k.web, more)
	if err := os.WriteFile(k.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return k
}

// start starts the server, for the first time or again. Only the goroutine of the test
// may call it.
func (k *talk) start() {
	k.t.Helper()
	k.site = startSite(k.t, k.dir, "server", "run", "--config", k.config)
}

// restart ends the server, as a power cut does or as systemd does, and starts it.
func (k *talk) restart(powerCut bool) {
	k.t.Helper()
	k.end(powerCut)
	k.start()
}

func (k *talk) end(powerCut bool) {
	k.t.Helper()
	if powerCut {
		k.kill()
	} else if err := k.stop(); err != nil {
		k.t.Fatal(err)
	}
}

// enroll issues a certificate to a device, whose former one is no longer used.
func (k *talk) enroll(device string) {
	k.t.Helper()
	issued, err := k.admin.CreateToken(k.t.Context(), api.NewToken{Device: device})
	if err != nil {
		k.t.Fatal(err)
	}
	id, err := sdk.Enroll(k.t.Context(), sdk.Enrollment{Server: k.ends.Enroll, Roots: k.roots, Device: device, Token: issued.Secret})
	if err != nil {
		k.t.Fatal(err)
	}
	k.ids[device], k.files[device] = id, countersigntest.WriteFiles(k.t, id)
}

// mosquitto are the options with which a client of mosquitto connects as a device.
func (k *talk) mosquitto(device, level string) []string {
	host, port, err := net.SplitHostPort(k.addr)
	if err != nil {
		k.t.Fatal(err)
	}
	f := k.files[device]
	return []string{"-V", level, "-h", host, "-p", port, "--cafile", k.ends.Roots, "-i", device, "--cert", f.Cert, "--key", f.Key}
}

// wire is a connection of an MQTT 5 client that does nothing by itself: the test decides
// what is acknowledged, and when.
type wire struct {
	net.Conn
	connack *packets.Connack
	mu      sync.Mutex // of writes
}

// dialTime bounds a handshake with a server that may be killed meanwhile.
const dialTime = 10 * time.Second

// refusedError is a CONNACK with a reason code that is no success.
type refusedError struct{ code byte }

func (e refusedError) Error() string { return fmt.Sprintf("CONNACK with reason code %#x", e.code) }

// dial connects a device with its certificate.
func (k *talk) dial(device string, hello *packets.Connect) (*wire, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTime}, Config: k.ids[device].TLSConfig()}
	d.Config.ServerName = "127.0.0.1"
	c, err := d.DialContext(k.t.Context(), "tcp", k.addr)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: c}
	_ = w.SetDeadline(time.Now().Add(dialTime))
	hello.ProtocolName, hello.ProtocolVersion = "MQTT", 5
	if hello.Properties == nil {
		hello.Properties = &packets.Properties{}
	}
	if hello.ClientID == "" {
		hello.ClientID = device
	}
	if err = w.send(hello); err == nil {
		err = w.accepted()
	}
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	_ = w.SetDeadline(time.Time{})
	return w, nil
}

func (w *wire) accepted() error {
	p, err := packets.ReadPacket(w)
	if err != nil {
		return err
	}
	ack, ok := p.Content.(*packets.Connack)
	if !ok {
		return fmt.Errorf("got %s, want CONNACK", p.PacketType())
	}
	if ack.ReasonCode != 0 {
		return refusedError{ack.ReasonCode}
	}
	w.connack = ack
	return nil
}

// send writes a packet; any goroutine may call it.
func (w *wire) send(p packets.Packet) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := p.WriteTo(w)
	return err
}

// kept is a CONNECT for a session that outlives its connection.
func kept(client string, clean bool) *packets.Connect {
	return &packets.Connect{ClientID: client, CleanStart: clean, KeepAlive: 600, Properties: &packets.Properties{SessionExpiryInterval: new(uint32(3600))}}
}

// subscribe subscribes and waits for SUBACK, which comes first.
func (w *wire) subscribe(subs ...packets.SubOptions) error {
	if err := w.send(&packets.Subscribe{PacketID: 65535, Subscriptions: subs, Properties: &packets.Properties{}}); err != nil {
		return err
	}
	for {
		p, err := packets.ReadPacket(w)
		if err != nil {
			return err
		}
		switch c := p.Content.(type) {
		case *packets.Suback:
			for i, code := range c.Reasons {
				if code != subs[i].QoS {
					return fmt.Errorf("SUBACK for %.80q: got reason code %#x, want %d", subs[i].Topic, code, subs[i].QoS)
				}
			}
			return nil
		case *packets.Publish:
			return fmt.Errorf("got PUBLISH on %.80q before SUBACK", c.Topic)
		}
	}
}

// publish publishes one message with QoS 1 and waits for its PUBACK.
func (w *wire) publish(topic, payload string, retain bool) error {
	if err := w.send(&packets.Publish{Topic: topic, Payload: []byte(payload), QoS: 1, PacketID: 1, Retain: retain, Properties: &packets.Properties{}}); err != nil {
		return err
	}
	for {
		p, err := packets.ReadPacket(w)
		if err != nil {
			return err
		}
		if ack, ok := p.Content.(*packets.Puback); ok {
			if ack.ReasonCode >= 0x80 {
				return fmt.Errorf("PUBACK with reason code %#x", ack.ReasonCode)
			}
			return nil
		}
	}
}

// usage adds up what the server has of all devices.
func (k *talk) usage(add func(api.Usage)) {
	for u, err := range k.admin.Usage(k.t.Context(), api.UsageFilter{}) {
		if err != nil {
			k.t.Errorf("usage: %v", err)
			return
		}
		add(u)
	}
}

// subscribed is how many subscriptions there are.
func (k *talk) subscribed() (n int) {
	k.usage(func(u api.Usage) { n += u.Subscriptions })
	return n
}

// live is how many sessions have a connection.
func (k *talk) live() (n int) {
	k.usage(func(u api.Usage) { n += u.Sessions })
	return n
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
