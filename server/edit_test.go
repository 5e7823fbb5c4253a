package server_test

import (
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/test/kit"
)

const sitePolicy = `
statements:
  - {id: in, effect: allow, actions: [connect]}
  - {id: site, effect: allow, actions: [subscribe, receive], topics: ['sites/${device.tags.site}/#']}
`

// TestEditsAndDisconnectsReachTheSession edits and disconnects a device at one node
// while its session is on another. A device of first contact gets its tags that way.
func TestEditsAndDisconnectsReachTheSession(t *testing.T) {
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		id := asked.Enroll(t, "pump-1")
		_, err := asked.Admin.ApplyPolicy(t.Context(), "default", api.ApplyPolicy{PolicySource: api.PolicySource{Source: sitePolicy}})
		if err != nil {
			t.Fatal(err)
		}
		text := func(s string) *string { return &s }
		edit := func(e api.EditDevice) {
			t.Helper()
			if _, err := asked.Admin.EditDevice(t.Context(), "pump-1", e); err != nil {
				t.Fatal(err)
			}
		}
		edit(api.EditDevice{Tags: map[string]*string{"site": text("north")}, Owner: text("ana")})
		conn, _ := connect(t, other, id)
		if code := subscribe(t, conn, "sites/north/#"); code != 0 {
			t.Fatalf("its own site: got %#x, want 0", code)
		}
		edit(api.EditDevice{Tags: map[string]*string{"site": text("south")}})
		ended(t, conn)
		conn, _ = connect(t, other, id)
		if north, south := subscribe(t, conn, "sites/north/#"), subscribe(t, conn, "sites/south/#"); north != 0x80 || south != 0 {
			t.Fatalf("after its site changed: north %#x, south %#x", north, south)
		}
		if _, err := asked.Admin.Disconnect(t.Context(), "pump-1", api.Act{Note: "try"}); err != nil {
			t.Fatal(err)
		}
		ended(t, conn)
		conn, code := connect(t, other, id)
		if code != 0 {
			t.Fatalf("after it was disconnected: got CONNACK %d, want it back at once", code)
		}
		session := ""
		for s, err := range other.Admin.Sessions(t.Context(), api.SessionFilter{Device: "pump-1"}) {
			if err != nil {
				t.Fatal(err)
			}
			session = s.ID
		}
		if done, err := asked.Admin.DisconnectSession(t.Context(), session, api.Act{}); err != nil || done.Device != "pump-1" {
			t.Fatalf("a session: got %+v, %v", done, err)
		}
		ended(t, conn)
		conn, _ = connect(t, other, id)
		for _, gone := range []string{"nowhere", session} {
			kit.Eventually(t, "the session "+gone+" is not found", func() bool { // its end is written behind
				_, err := asked.Admin.DisconnectSession(t.Context(), gone, api.Act{})
				return countersign.CodeOf(err) == countersign.NotFound
			})
		}
		if code := subscribe(t, conn, "sites/south/#"); code != 0 {
			t.Errorf("another session was ended: %#x", code)
		}
		if _, err := asked.Admin.PutFleet(t.Context(), "line-2", api.PutFleet{}); err != nil {
			t.Fatal(err)
		}
		edit(api.EditDevice{Fleet: text("line-2")})
		ended(t, conn)
		conn, code = connect(t, other, id)
		if code != 0 || subscribe(t, conn, "devices/pump-1/down/#") != 0 {
			t.Errorf("in its new fleet: got CONNACK %d, or not what that fleet allows", code)
		}
	})
}
