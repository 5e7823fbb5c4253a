package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
)

// kept is how many sessions of a device wait for its client.
func kept(t *testing.T, s *countersigntest.Server, device string) int {
	t.Helper()
	for u, err := range s.Admin.Usage(t.Context(), api.UsageFilter{Device: device}) {
		if err != nil {
			t.Fatal(err)
		}
		return u.Kept
	}
	return 0
}

// TestASuspensionDropsTheWillThatWaits loses a device's connection and suspends it before
// the delay of its will is over.
func TestASuspensionDropsTheWillThatWaits(t *testing.T) {
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		wills := make(chan string, 4)
		if err := other.Subscribe(t.Context(), "devices/+/up/will", func(topic string, _ []byte) { wills <- topic }); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"pump-1", "pump-2"} {
			id := asked.Enroll(t, name)
			conn, err := (&tls.Dialer{Config: id.TLSConfig()}).DialContext(t.Context(), "tcp", other.Broker(t))
			if err != nil {
				t.Fatal(err)
			}
			will := "devices/" + name + "/up/will"
			packet := bytes.Join([][]byte{
				{0x10, byte(16 + 2 + len(name) + 6 + 2 + len(will) + 2 + 4), 0, 4, 'M', 'Q', 'T', 'T', 5, 0x06, 0, 60, 5, 0x11, 0, 0, 0, 60},
				{0, byte(len(name))},
				[]byte(name),
				{5, 0x18, 0, 0, 0, 5},
				{0, byte(len(will))},
				[]byte(will),
				{0, 4},
				[]byte("gone"),
			}, nil)
			if _, err := conn.Write(packet); err != nil {
				t.Fatal(err)
			}
			head := make([]byte, 4)
			if _, err := io.ReadFull(conn, head); err != nil || head[3] != 0 {
				t.Fatalf("CONNACK: got % x, %v", head, err)
			}
			_ = conn.Close()
		}
		for until := time.Now().Add(patience); kept(t, other, "pump-1")+kept(t, other, "pump-2") < 2; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatal("the sessions did not end")
			}
		}
		if _, err := asked.Admin.Suspend(context.WithoutCancel(t.Context()), "pump-1", api.Act{Note: "lost"}); err != nil {
			t.Fatal(err)
		}
		select {
		case topic := <-wills:
			if topic != "devices/pump-2/up/will" {
				t.Errorf("the will of the suspended device was published: %s", topic)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the other device's will was not published")
		}
		select {
		case topic := <-wills:
			t.Errorf("the will of the suspended device was published: %s", topic)
		case <-time.After(time.Second):
		}
	})
}
