package server_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
)

// scrape reads the metrics over the operators' socket.
func scrape(t *testing.T, s *countersigntest.Server) string {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.Endpoints().Socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://socket/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// finds looks for an event until it is there.
func finds(t *testing.T, s *countersigntest.Server, f api.EventFilter) api.Event {
	t.Helper()
	for began := time.Now(); time.Since(began) < patience; time.Sleep(50 * time.Millisecond) {
		for e, err := range s.Admin.Events(t.Context(), f, api.Order{Order: "desc"}) {
			if err != nil {
				break // the database may not be back yet
			}
			return e
		}
	}
	t.Fatalf("no event %+v", f)
	return api.Event{}
}

// TestSessionsEndWhenTheDatabaseIsLostForTooLong keeps the database away for longer
// than the setting allows. Sessions go on until then and no longer; doctor and metrics
// show it meanwhile, events and an alert afterwards.
func TestSessionsEndWhenTheDatabaseIsLostForTooLong(t *testing.T) {
	const allowed = 4 * time.Second
	s := countersigntest.Start(t, countersigntest.Options{
		Database:  countersigntest.Postgres,
		Configure: func(c *config.Config) { c.OfflineSessions = allowed },
	})
	c := client{id: "pump-1", identity: s.Enroll(t, "pump-1")}
	conn := c.open(t, s)
	if text := scrape(t, s); !strings.Contains(text, "countersign_database_up 1") {
		t.Error("countersign_database_up is not 1")
	}
	s.Faults.Cut()
	began := time.Now()
	time.Sleep(allowed / 2)
	lives(t, "half of the time that is allowed", conn)
	if text := scrape(t, s); !strings.Contains(text, "countersign_database_up 0") {
		t.Error("countersign_database_up is not 0")
	}
	d, err := s.Admin.Doctor(t.Context())
	if err != nil || d.Checks[0].Level != api.LevelFail || !strings.Contains(d.Checks[0].Message, "cannot be reached since") {
		t.Errorf("doctor: got %+v, %v, want that the database cannot be reached", d, err)
	}
	endsWithin(t, "longer than is allowed", conn, allowed/2+2*time.Second)
	if took := time.Since(began); took < allowed {
		t.Errorf("ended after %v, want no sooner than %v", took, allowed)
	}
	s.Faults.Heal()
	back := finds(t, s, api.EventFilter{Type: "database.back"})
	if back.Data["sessions_ended"] != "1" || back.Data["lost_for"] == "" {
		t.Errorf("database.back: got %+v", back)
	}
	if lost := finds(t, s, api.EventFilter{Type: "database.lost"}); lost.At.After(back.At.Add(-allowed)) {
		t.Errorf("database.lost at %v, database.back at %v", lost.At, back.At)
	}
	if closed := finds(t, s, api.EventFilter{Type: "session.closed"}); closed.Code != "unverified" {
		t.Errorf("session.closed: got %+v, want code unverified", closed)
	}
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		found := false
		for a, err := range s.Admin.Alerts(t.Context(), api.AlertFilter{}) {
			found = found || err == nil && a.Rule == "database_lost"
		}
		if found {
			break
		}
		if time.Since(began) > patience {
			t.Fatal("no alert database_lost")
		}
	}
	c.open(t, s)
}
