package server_test

import (
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestRevocationErasesWhatTheDeviceStored reads the rows as soon as the revocation is
// answered, on the node that was asked and on the one that has the sessions, and has the
// device come again.
func TestRevocationErasesWhatTheDeviceStored(t *testing.T) {
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		stock(t, other, asked.Enroll(t, "gone"), 3)
		stock(t, other, asked.Enroll(t, "stays"), 2)
		if _, err := asked.Admin.Revoke(t.Context(), "gone", api.Revoke{Reason: "keyCompromise"}); err != nil {
			t.Fatal(err)
		}
		for device, want := range map[string]int{"gone": 0, "stays": 4} {
			var sessions, retained int
			err := asked.Database().QueryRow(t.Context(), `SELECT (SELECT count(*) FROM mqtt_session WHERE device = $1), (SELECT count(*) FROM mqtt_retained WHERE device = $1)`, device).
				Scan(&sessions, &retained)
			if err != nil || sessions+retained != want {
				t.Errorf("%s: got %d sessions and %d retained messages on record, %v, want %d in all", device, sessions, retained, err, want)
			}
		}
		kit.Eventually(t, "the node of the sessions has forgotten them", func() bool { return len(usageOf(t, other.Admin, "gone")) == 0 })
		if u := usageOf(t, other.Admin, "stays"); len(u) != 1 || u[0].Retained != 2 || u[0].Kept != 1 || u[0].Sessions != 1 {
			t.Errorf("of the other device: got %+v, want what it had", u)
		}
	})
}

// TestThePlatformIsSentToTheBroker that carries the messages in the place of the core.
func TestThePlatformIsSentToTheBroker(t *testing.T) {
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) {
		c.Engine = config.Engine{Kind: config.EngineBroker, Addr: "127.0.0.1:1"}
	}})
	for what, err := range map[string]error{
		"publish":   s.Publish(t.Context(), "devices/x/down/y", nil),
		"subscribe": s.Subscribe(t.Context(), "#", func(string, []byte) {}),
	} {
		if countersign.CodeOf(err) != countersign.Conflict {
			t.Errorf("%s: got %v, want the code conflict", what, err)
		}
	}
	for _, err := range s.Admin.Usage(t.Context(), api.UsageFilter{}) {
		if countersign.CodeOf(err) != countersign.Conflict {
			t.Errorf("usage: got %v, want the code conflict", err)
		}
	}
}
