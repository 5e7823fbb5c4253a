package mqtt_test

import (
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/test/kit"
)

// inbox joins as dev with Request Response Information and keeps the session; it returns
// the inbox that CONNACK names.
func (g *gateway) inbox(t testing.TB) (*device, string, bool) {
	t.Helper()
	d := g.dial(t, "dev")
	d.v5 = true
	d.send(connect5(0, props([]byte{0x19, 1}, []byte{0x11, 0, 0, 1, 0})))
	kind, body := d.recv()
	if kind != 0x20 || body[1] != 0 {
		t.Fatalf("CONNACK: got %#x % x", kind, body)
	}
	_, rest, ok := strings.Cut(string(body), "\x1A\x00")
	if !ok || int(rest[0]) > len(rest)-1 {
		t.Fatalf("no Response Information in % x", body)
	}
	return d, rest[1 : 1+int(rest[0])], body[0] == 1
}

func TestTheInboxLivesWithItsSession(t *testing.T) {
	for name, engine := range map[string]engine{"builtin": {}, "mosquitto": relayTo(startMosquitto(t, "allow_anonymous true\n"))} {
		t.Run(name, func(t *testing.T) {
			g := start(t, engine)
			g.guard.perms["service"] = permissions([]string{"_inbox/+/#"}, nil)
			service := g.join(t, "service", 4)
			answer := func(id uint16, topic string) {
				t.Helper()
				service.send(service.publish(1, id, topic, topic))
				service.expect("PUBACK", []byte{0x40, 2, byte(id >> 8), byte(id)})
			}
			d, inbox, _ := g.inbox(t)
			if s := g.Index.Sessions(); !strings.HasPrefix(inbox, "_inbox/") || !strings.HasSuffix(inbox, "/") || len(s) != 2 {
				t.Errorf("inbox %q with sessions %v", inbox, s)
			}
			d.send(d.subscribe(1, inbox+"#", "devices/dev/down/#", "_inbox/+/#", "_inbox/someone/#"))
			d.expect("SUBACK", []byte{0x90, 7, 0, 1, 0, 1, 1, 0x87, 0x87})
			answer(1, inbox+"r")
			if kind, body := d.recv(); kind&0xF0 != 0x30 || !strings.Contains(string(body), inbox+"r") {
				t.Errorf("answer: got %#x %q", kind, body)
			} else if kind&0x06 != 0 {
				d.send([]byte{0x40, 2, body[2+len(inbox)+1], body[2+len(inbox)+2]})
			}
			d.send(d.publish(1, 2, inbox+"r", "to myself"))
			d.expect("publishing is policy's", []byte{0x40, 3, 0, 2, 0x87})
			_ = d.raw.Close()
			kit.Eventually(t, "the session ends", func() bool { return g.Index.Len() == 1 })
			answer(3, inbox+"late")
			answer(4, inbox+"later")
			again, second, present := g.inbox(t)
			if second == inbox || !present {
				t.Errorf("second session: inbox %q, present %v", second, present)
			}
			again.send(again.subscribe(5, inbox+"#", second+"#"))
			again.expect("SUBACK", []byte{0x90, 5, 0, 5, 0, 0x87, 1})
			answer(6, second+"r")
			if m := again.next(); m.topic != second+"r" {
				t.Errorf("the first message of the second session: got %+v", m)
			}
			// A clean leave keeps the session too, and not its inbox.
			again.send(pkt(0xE0, []byte{0}))
			kit.Eventually(t, "the session ends", func() bool { return g.Index.Len() == 1 })
			answer(7, second+"late")
			third, _, present := g.inbox(t)
			third.send([]byte{0xC0, 0})
			third.expect("nothing but PINGRESP", []byte{0xD0, 0})
			if !present {
				t.Error("the session was not kept")
			}
			if n := g.Stats().Denied; n != 4 { // what was tried above
				t.Errorf("%d acts were denied, want 4: messages came down from a dead inbox", n)
			}
			plain := g.dial(t, "plain")
			plain.send(connectPacket(5, "plain", 2, 60, nil))
			if _, body := plain.recv(); strings.Contains(string(body), "_inbox/") { // [MQTT-3.1.2-28]
				t.Errorf("Response Information that was not asked for: % x", body)
			}
		})
	}
}

// silent is a client of the core that wants nothing.
type silent struct{}

func (silent) Deliver(broker.Delivery) broker.Outcome          { return broker.Full }
func (silent) Acknowledge(broker.Acknowledgment, uint16, byte) {}
func (silent) Flush()                                          {}
func (silent) Receives(string) bool                            { return true }
func (silent) Lost(byte, string)                               {}

// TestADeadInboxIsNotHeard is about a node that died before it could take a session's
// inbox out: the core restores a subscription that is no more permitted.
func TestADeadInboxIsNotHeard(t *testing.T) {
	g := start(t, engine{})
	c, _, err := g.Broker.Connect(t.Context(), broker.Hello{ClientID: "dev", Device: "dev", Expiry: time.Hour, Kept: 1}, silent{})
	if err != nil {
		t.Fatal(err)
	}
	c.Subscribe(t.Context(), []broker.Subscription{{Filter: "devices/dev/down/#", QoS: 1}, {Filter: "_inbox/old/#", QoS: 1}})
	c.Close(true, nil)
	d := g.dial(t, "dev")
	d.send(keep(4, "dev"))
	d.expect("CONNACK with Session Present", []byte{0x20, 2, 1, 0})
	g.send(t, "_inbox/old/x", []byte("dead"))
	g.send(t, "devices/dev/down/x", []byte("alive"))
	d.gets("alive")
	d.quiet("a dead inbox")
}

// TestNoPolicyOpensAnInbox to anybody but its session: one that grants everything
// does not either.
func TestNoPolicyOpensAnInbox(t *testing.T) {
	g := start(t, engine{})
	g.guard.perms["service"] = permissions([]string{"#"}, nil)
	g.guard.perms["snoop"] = permissions(nil, []string{"#"})
	_, inbox, _ := g.inbox(t)
	service, snoop := g.join(t, "service", 4), g.join(t, "snoop", 5)
	snoop.send(snoop.subscribe(1, "#", "_inbox/+/#", "_inbox/#", inbox+"#", "$share/s/_inbox/#"))
	if kind, body := snoop.recv(); kind != 0x90 || !strings.HasSuffix(string(body), "\x01\x87\x87\x87\x87") {
		t.Errorf("SUBACK: got %#x % x", kind, body)
	}
	denied := g.Stats().Denied
	for i, topic := range []string{inbox + "r", "lobby/x"} {
		service.send(service.publish(1, uint16(i+1), topic, topic))
		service.expect("PUBACK", []byte{0x40, 2, 0, byte(i + 1)})
	}
	if m := snoop.next(); m.topic != "lobby/x" {
		t.Errorf("the first message: got %+v", m)
	}
	if n := g.Stats().Denied; n != denied {
		t.Errorf("%d acts were denied, want none: a filter of the policy's own is no attempt", n-denied)
	}
}
