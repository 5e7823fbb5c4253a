package mqtt_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/test/kit"
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
			g := start(t, coreIn(t, dir))
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
				g.send(t, down, []byte("new"))
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
					g.send(t, down, fmt.Appendf(nil, "%d while away %d", round, i))
				}
			}
		})
	}
}

// TestAnIdleSessionIsOneGoroutine also with a kept session and a subscription.
func TestAnIdleSessionIsOneGoroutine(t *testing.T) {
	g := start(t, engine{})
	const devices = 20
	for i := range devices {
		id := fmt.Sprintf("idle%d", i)
		d := g.dial(t, id)
		d.v5 = true
		d.send(keep(5, id))
		d.recv()
		d.send(d.subscribe(1, "devices/"+id+"/down/#"))
		d.recv()
		g.send(t, "devices/"+id+"/down/x", []byte("x"))
		d.gets("x")
	}
	kit.Eventually(t, "one goroutine for each session", func() bool {
		buf := make([]byte, 4<<20)
		n := 0
		for one := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(one, "countersign/mqtt.(*") || strings.Contains(one, "countersign/edge.(*Gate).serve") {
				n++
			}
		}
		return n == devices+2 // the accept loops
	})
}

// TestManySubscribersOfQoS1 has each of many filters granted and served.
func TestManySubscribersOfQoS1(t *testing.T) {
	g := start(t, engine{})
	const devices, filters = 9, 60
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
		g.send(t, last, []byte("x"))
		if kind, _ := d.recv(); kind&0xF0 != 0x30 {
			t.Fatalf("device %d: got packet type %#x, want the message", i, kind)
		}
	}
}
