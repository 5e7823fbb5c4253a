package mqtt_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/countersign-iot/countersign/mqtt"
)

// keep is a CONNECT of a session that outlives its connection.
func keep(level byte, id string) []byte {
	var p []byte
	if level == 5 {
		p = props([]byte{0x11, 0, 0, 0x0E, 0x10})
	}
	return pkt(0x10, str("MQTT"), []byte{level, 0, 0, 60}, p, str(id))
}

// TestKeptSessionsReceiveAfterARestartOfTheEngine asserts messages, not Session
// Present: the record of a session is worth nothing without its queue.
func TestKeptSessionsReceiveAfterARestartOfTheEngine(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		t.Run(fmt.Sprintf("start %d", round), func(t *testing.T) {
			g := start(t, startNATS(t, dir, quiet()))
			for _, level := range []byte{4, 5} {
				id := fmt.Sprintf("kept%d", level)
				down := "devices/" + id + "/down/x"
				d := g.dial(t, id)
				d.v5 = level == 5
				d.send(keep(level, id))
				if _, body := d.recv(); body[1] != 0 || int(body[0]) != min(round, 1) {
					t.Fatalf("level %d: CONNACK % x, want success and Session Present %d", level, body, min(round, 1))
				}
				if round == 0 {
					d.send(d.subscribe(1, "devices/"+id+"/down/#"))
					d.recv()
				}
				var got []string
				want := []string{}
				if round > 0 {
					for i := range 5 {
						want = append(want, fmt.Sprintf("%d while away %d", round-1, i))
					}
				}
				if err := g.Engine.(mqtt.Platform).Publish(t.Context(), down, []byte("new")); err != nil {
					t.Fatal(err)
				}
				want = append(want, "new")
				for range want {
					kind, body := d.recv()
					if kind&0xF0 != 0x30 {
						t.Fatalf("level %d: got packet type %#x", level, kind)
					}
					at := 2 + len(down)
					d.send(pkt(0x40, body[at:at+2]))
					at += 2
					if d.v5 {
						at += 1 + int(body[at])
					}
					got = append(got, string(body[at:]))
				}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("level %d, start %d: received %q, want %q", level, round, got, want)
				}
				time.Sleep(100 * time.Millisecond) // until the engine has the PUBACK
				d.send([]byte{0xE0, 0})
				d.gone("goodbye", 0)
				for i := range 5 {
					if err := g.Engine.(mqtt.Platform).Publish(t.Context(), down, fmt.Appendf(nil, "%d while away %d", round, i)); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// engineID is the client identifier of a session at the engine.
func engineID(device, client string) string {
	short := func(s string) string {
		h := sha256.Sum256([]byte(s))
		return hex.EncodeToString(h[:12])
	}
	return short(device) + "-" + short(client)
}

// TestDeafSessionsOfAnEarlierVersionAreDropped makes the store as the version before
// left it: the records of sessions in files, their consumers in memory.
func TestDeafSessionsOfAnEarlierVersionAreDropped(t *testing.T) {
	dir := t.TempDir()
	opts := &server.Options{
		ServerName: "countersign", DontListen: true, NoSigs: true, JetStream: true, StoreDir: dir,
		MQTT: server.MQTTOpts{Host: "127.0.0.1", Port: server.RANDOM_PORT, ConsumerMemoryStorage: true},
	}
	old := must(server.NewServer(opts))
	old.Start()
	if !old.ReadyForConnections(20 * time.Second) {
		t.Fatal("the engine of before did not start")
	}
	c := must(net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(opts.MQTT.Port))))
	d := &device{t: t, id: "dev", Conn: c}
	d.send(keep(4, engineID("dev", "dev")))
	d.recv()
	d.send(d.subscribe(1, "devices/dev/down/#"))
	d.recv()
	_, _ = d.Write([]byte{0xE0, 0})
	_, _ = io.Copy(io.Discard, c)
	old.Shutdown()
	old.WaitForShutdown()

	g := start(t, startNATS(t, dir, quiet()))
	now := g.dial(t, "dev")
	now.send(keep(4, "dev"))
	now.expect("CONNACK without Session Present", []byte{0x20, 2, 0, 0})
	now.send(now.subscribe(1, "devices/dev/down/#"))
	now.expect("SUBACK", []byte{0x90, 3, 0, 1, 1})
	if err := g.Engine.(mqtt.Platform).Publish(t.Context(), "devices/dev/down/x", []byte("heard")); err != nil {
		t.Fatal(err)
	}
	if kind, _ := now.recv(); kind&0xF0 != 0x30 {
		t.Errorf("got packet type %#x, want the message", kind)
	}
}

// TestManySubscribersOfQoS1 has more consumers than the engine's own default of 1,000.
func TestManySubscribersOfQoS1(t *testing.T) {
	g := start(t, nil)
	const devices, filters = 9, 60 // each filter that ends with # is two consumers
	for i := range devices {
		id := fmt.Sprintf("many%d", i)
		d := g.join(t, id, 4)
		var all []string
		for j := range filters {
			all = append(all, fmt.Sprintf("devices/%s/down/%d/#", id, j))
		}
		d.send(d.subscribe(1, all...))
		_, body := d.recv()
		for j, code := range body[2:] {
			if code != 1 {
				t.Fatalf("device %d, filter %d: SUBACK %#x", i, j, code)
			}
		}
		last := fmt.Sprintf("devices/%s/down/%d", id, filters-1)
		if err := g.Engine.(mqtt.Platform).Publish(t.Context(), last, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if kind, _ := d.recv(); kind&0xF0 != 0x30 {
			t.Fatalf("device %d: got packet type %#x, want the message", i, kind)
		}
	}
}
