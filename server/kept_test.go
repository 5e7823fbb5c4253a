package server_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/countersign-iot/countersign/countersigntest"
)

// TestKeptSessionsReceiveAfterARestart asserts that messages arrive after the whole
// server has started anew: those that it took before, and new ones.
func TestKeptSessionsReceiveAfterARestart(t *testing.T) {
	s := countersigntest.Start(t)
	id := s.Enroll(t, "kept")
	got := make(chan string, 100)
	connect := func() paho.Client {
		t.Helper()
		c := paho.NewClient(paho.NewClientOptions().AddBroker("ssl://" + strings.TrimPrefix(s.Endpoints().MQTT, "mqtts://")).
			SetClientID("kept").SetCleanSession(false).SetProtocolVersion(4).SetTLSConfig(id.TLSConfig()).SetAutoReconnect(false).
			SetConnectTimeout(patience).SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { got <- string(m.Payload()) }))
		if k := c.Connect(); !k.WaitTimeout(patience) || k.Error() != nil {
			t.Fatal(k.Error())
		}
		return c
	}
	c := connect()
	if k := c.Subscribe("devices/kept/down/#", 1, nil); !k.WaitTimeout(patience) || k.Error() != nil {
		t.Fatal(k.Error())
	}
	c.Disconnect(100)
	for i := range 5 {
		if err := s.Publish(t.Context(), "devices/kept/down/x", fmt.Appendf(nil, "queued %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	s.Restart(t)
	c = connect()
	defer c.Disconnect(100)
	if err := s.Publish(t.Context(), "devices/kept/down/x", []byte("new")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"queued 0", "queued 1", "queued 2", "queued 3", "queued 4", "new"} {
		select {
		case m := <-got:
			if m != want {
				t.Errorf("got %q, want %q", m, want)
			}
		case <-time.After(patience):
			t.Fatalf("%q did not arrive", want)
		}
	}
}
