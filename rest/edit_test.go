package rest_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

func (h *house) eventsOf(t *testing.T, kind countersign.EventType) []countersign.Event {
	t.Helper()
	list, _, err := h.Events.List(t.Context(), event.Filter{Type: kind})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestDevicesAreEdited changes a device step by step. Each step is a merge patch: what
// it does not name stays.
func TestDevicesAreEdited(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	c.must("PUT", "/fleets/line-2", `{}`, nil)
	c.must("POST", "/devices", `{"id":"pump-1","owner":"ana","tags":{"site":"north","floor":"1"}}`, nil)
	for _, tt := range []struct {
		change   string
		want     api.Device
		changed  map[string]string
		sessions int
	}{
		{`{}`, api.Device{Owner: "ana", Tags: map[string]string{"site": "north", "floor": "1"}}, nil, 0},
		{
			`{"owner":"ben","purpose":"cooling"}`,
			api.Device{Owner: "ben", Purpose: "cooling", Tags: map[string]string{"site": "north", "floor": "1"}},
			map[string]string{"owner": "ben", "owner_before": "ana", "purpose": "cooling", "purpose_before": ""},
			0,
		},
		{
			`{"tags":{"site":"south","floor":null,"rack":"7"}}`,
			api.Device{Owner: "ben", Purpose: "cooling", Tags: map[string]string{"site": "south", "rack": "7"}},
			map[string]string{"tag.site": "south", "tag.site_before": "north", "tag.floor": "", "tag.floor_before": "1", "tag.rack": "7", "tag.rack_before": ""},
			0,
		},
		{
			`{"owner":null,"tags":{"nope":null}}`,
			api.Device{Purpose: "cooling", Tags: map[string]string{"site": "south", "rack": "7"}},
			map[string]string{"owner": "", "owner_before": "ben"},
			0,
		},
		{
			`{"fleet":"line-2"}`,
			api.Device{Fleet: "line-2", Purpose: "cooling", Tags: map[string]string{"site": "south", "rack": "7"}},
			map[string]string{"fleet": "line-2", "fleet_before": "default"},
			2,
		},
	} {
		var got api.EditedDevice
		c.must("PATCH", "/devices/pump-1", tt.change, &got)
		if tt.want.Fleet == "" {
			tt.want.Fleet = "default"
		}
		if got.Fleet != tt.want.Fleet || got.Owner != tt.want.Owner || got.Purpose != tt.want.Purpose || cmp.Diff(tt.want.Tags, got.Tags) != "" {
			t.Errorf("%s: got %+v, want %+v", tt.change, got.Device, tt.want)
		}
		if d := cmp.Diff(tt.changed, got.Changed); d != "" || got.Sessions != tt.sessions {
			t.Errorf("%s: %d sessions ended, changed (-want +got):\n%s", tt.change, got.Sessions, d)
		}
		var again api.Device
		if c.must("GET", "/devices/pump-1", "", &again); cmp.Diff(got.Device, again) != "" {
			t.Errorf("%s: what was answered is not what is on record: %s", tt.change, cmp.Diff(got.Device, again))
		}
	}
	list := h.eventsOf(t, countersign.DeviceChanged)
	if len(list) != 4 { // not for the change that changed nothing
		t.Fatalf("got %d events, want 4: %+v", len(list), list)
	}
	if e := list[3]; e.Device != "pump-1" || e.Fleet != "line-2" || e.Actor != "operator:local" || e.Data["fleet_before"] != "default" {
		t.Errorf("got %+v", e)
	}
	if ended := h.eventsOf(t, countersign.SessionEnded); len(ended) != 1 || ended[0].Device != "pump-1" || ended[0].Data["session"] != "" {
		t.Errorf("moved: got %+v, want its sessions ended", ended)
	}
}

func TestEditsThatCannotBeAreRefused(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	c.must("PUT", "/fleets/line-2", `{}`, nil)
	c.must("PUT", "/fleets/spiffe", `{"trust_domain":"example.org"}`, nil)
	c.must("POST", "/devices", `{"id":"pump:1"}`, nil)
	c.must("POST", "/devices", `{"id":"keyed"}`, nil)
	c.must("POST", "/keys", `{"device":"keyed"}`, nil)
	c.must("POST", "/devices", `{"id":"gone"}`, nil)
	c.must("POST", "/devices/gone/retire", `{}`, nil)
	for name, tt := range map[string]struct {
		device, change string
		status         int
		code           countersign.Code
	}{
		"no such device":             {"pump-9", `{"owner":"x"}`, 404, countersign.NotFound},
		"no such fleet":              {"pump:1", `{"fleet":"nope"}`, 404, countersign.NotFound},
		"no fleet at all":            {"pump:1", `{"fleet":null}`, 400, countersign.BadRequest},
		"tags null":                  {"pump:1", `{"tags":null}`, 400, countersign.BadRequest},
		"an unknown field":           {"pump:1", `{"state":"active"}`, 422, countersign.BadRequest},
		"a tag that is too long":     {"pump:1", `{"tags":{"x":"` + strings.Repeat("x", 300) + `"}}`, 400, countersign.BadRequest},
		"a colon into SPIFFE":        {"pump:1", `{"fleet":"spiffe"}`, 400, countersign.BadRequest},
		"its key is another fleet's": {"keyed", `{"fleet":"line-2"}`, 409, countersign.Conflict},
		"retired":                    {"gone", `{"fleet":"line-2"}`, 403, countersign.DeviceGone},
	} {
		var p api.Problem
		if res := c.do("PATCH", "/devices/"+tt.device, tt.change, &p); res.StatusCode != tt.status || p.Code != string(tt.code) {
			t.Errorf("%s: got %d %s %q, want %d %s", name, res.StatusCode, p.Code, p.Detail, tt.status, tt.code)
		}
	}
	if list := h.eventsOf(t, countersign.DeviceChanged); len(list) != 0 {
		t.Errorf("events of changes that were refused: %+v", list)
	}
}

// TestAMovedDeviceTakesItsTokenAlong enrolls in the new fleet with a token that was
// made before.
func TestAMovedDeviceTakesItsTokenAlong(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	c.must("PUT", "/fleets/line-2", `{"methods":["token"]}`, nil)
	c.must("POST", "/devices", `{"id":"pump-1"}`, nil)
	var tok api.IssuedToken
	c.must("POST", "/tokens", `{"device":"pump-1"}`, &tok)
	c.must("PATCH", "/devices/pump-1", `{"fleet":"line-2"}`, nil)
	g, err := h.RA.Enroll(t.Context(), countersign.EnrollRequest{
		CSR: newCSR(t, "pump-1"), Evidence: countersign.Evidence{Token: tok.Secret}, Door: "rest", Remote: netip.MustParseAddrPort("127.0.0.1:1"),
	})
	if err != nil || g.Fleet != "line-2" {
		t.Errorf("got %+v, %v, want a certificate of line-2", g, err)
	}
}

func TestSessionsAreDisconnected(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	c.must("POST", "/devices", `{"id":"pump-1"}`, nil)
	h.sessions = []countersign.Session{{ID: "s1", Device: "pump-1", Since: time.Now()}}
	var got api.Disconnected
	c.must("POST", "/devices/pump-1/disconnect", `{"note":"new policy"}`, &got)
	if got.Device != "pump-1" || got.Sessions != 2 || got.Session != "" || got.At.IsZero() {
		t.Errorf("a device: got %+v", got)
	}
	got = api.Disconnected{}
	if c.must("POST", "/sessions/s1/disconnect", "", &got); got.Device != "pump-1" || got.Session != "s1" || got.Sessions != 2 {
		t.Errorf("a session: got %+v", got)
	}
	if res := c.do("POST", "/sessions/nowhere/disconnect", "", nil); res.StatusCode != http.StatusNotFound {
		t.Errorf("a session that there is not: got %s", res.Status)
	}
	if res := c.do("POST", "/devices/pump-9/disconnect", "", nil); res.StatusCode != http.StatusNotFound {
		t.Errorf("a device that there is not: got %s", res.Status)
	}
	list := h.eventsOf(t, countersign.SessionEnded)
	if len(list) != 2 {
		t.Fatalf("got %d events, want 2", len(list))
	}
	for i, want := range []countersign.Cut{{Device: "pump-1"}, {Session: "s1"}} {
		cut, ok := list[i].Cut()
		if !ok || cut.Device != want.Device || cut.Session != want.Session {
			t.Errorf("event %d cuts %+v, want %+v", i, cut, want)
		}
	}
	if list[0].Reason != "new policy" || list[1].Device != "pump-1" {
		t.Errorf("got %+v", list)
	}
}

// TestRulesArePatched follows RFC 7396 over a fleet's rules.
func TestRulesArePatched(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	c.must("PUT", "/fleets/pumps", `{"rules":{"networks":["192.0.2.0/24"],"recovery":{"max_age":"720h","max_times":3},"respond":{"wrong_secret":["note"]}}}`, nil)
	text := func(api.Fleet) string {
		var all struct {
			Rules map[string]any `json:"rules"`
		}
		c.must("GET", "/fleets/pumps", "", &all)
		return strings.Join(ruleLines(all.Rules), " ")
	}
	for _, tt := range []struct{ change, want string }{
		{`{"connect":true}`, `connect=true networks=[192.0.2.0/24] recovery=map[max_age:720h0m0s max_times:3] respond=map[wrong_secret:[note]]`},
		{`{"recovery":{"max_times":5}}`, `connect=true networks=[192.0.2.0/24] recovery=map[max_age:720h0m0s max_times:5] respond=map[wrong_secret:[note]]`},
		{`{"recovery":null,"networks":["198.51.100.0/24"]}`, `connect=true networks=[198.51.100.0/24] respond=map[wrong_secret:[note]]`},
		{`{"respond":{"wrong_secret":null,"*":["alert"]}}`, `connect=true networks=[198.51.100.0/24] respond=map[*:[alert]]`},
		{`{}`, `connect=true networks=[198.51.100.0/24] respond=map[*:[alert]]`},
		{`{"connect":null,"networks":null,"respond":null}`, ``},
	} {
		var dry, f api.Fleet
		before := text(f)
		if c.must("PATCH", "/fleets/pumps/rules?dry_run=true", tt.change, &dry); text(dry) != before {
			t.Errorf("%s, dry: the rules changed", tt.change)
		}
		c.must("PATCH", "/fleets/pumps/rules", tt.change, &f)
		if got := text(f); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.change, got, tt.want)
		}
		if cmp.Diff(dry.Rules, f.Rules) != "" {
			t.Errorf("%s: tried %+v, done %+v", tt.change, dry.Rules, f.Rules)
		}
	}
	for name, tt := range map[string]struct {
		path, change string
		status       int
	}{
		"no such fleet":     {"/fleets/nope/rules", `{}`, 404},
		"no such rule":      {"/fleets/pumps/rules", `{"netwroks":[]}`, 400},
		"no object":         {"/fleets/pumps/rules", `[]`, 400},
		"null":              {"/fleets/pumps/rules", `null`, 400},
		"a value of no use": {"/fleets/pumps/rules", `{"networks":["here"]}`, 400},
		"half a rule":       {"/fleets/pumps/rules", `{"recovery":{"max_times":3}}`, 400},
	} {
		var p api.Problem
		if res := c.do("PATCH", tt.path, tt.change, &p); res.StatusCode != tt.status {
			t.Errorf("%s: got %d %q, want %d", name, res.StatusCode, p.Detail, tt.status)
		}
	}
	saved := h.eventsOf(t, countersign.FleetSaved)
	if e := saved[len(saved)-1]; e.Data["rules"] != "connect,networks,respond" {
		t.Errorf("the event names the rules %q", e.Data["rules"])
	}
}

func ruleLines(rules map[string]any) (list []string) {
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		list = append(list, fmt.Sprint(name, "=", rules[name]))
	}
	return list
}

// TestDoctorSeesThatTheLogWasShortened removes the end of the log.
func TestDoctorSeesThatTheLogWasShortened(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	level := func() string {
		var d api.Doctor
		c.must("GET", "/doctor", "", &d)
		for _, check := range d.Checks {
			if check.Name == "log" {
				return check.Level
			}
		}
		return "no such check"
	}
	c.must("POST", "/devices", `{"id":"pump-1"}`, nil)
	c.must("POST", "/devices", `{"id":"pump-2"}`, nil)
	if _, err := h.Events.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := level(); got != api.LevelOK {
		t.Errorf("a whole log: got %s", got)
	}
	err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM event WHERE seq = 2`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := level(); got != api.LevelFail {
		t.Errorf("its end removed: got %s, want %s", got, api.LevelFail)
	}
}
