package server_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
)

// wallClock is a clock that can be set while a server runs.
type wallClock struct{ ahead atomic.Int64 }

func (c *wallClock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// set has the clock differ from the right time by d.
func (c *wallClock) set(d time.Duration) { c.ahead.Store(int64(d)) }

// TestSessionsEndWhenTheClockIsSet sets the clock while a session is live. The timer that
// ends the session with its certificate goes by the time that passes, so it would be late
// by as much as the clock was set ahead.
func TestSessionsEndWhenTheClockIsSet(t *testing.T) {
	clock := &wallClock{}
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		defer clock.set(0) // for the servers that follow
		c := client{id: "pump-1", identity: asked.Enroll(t, "pump-1")}
		here, there := c.open(t, asked), client{id: "pump-2", identity: asked.Enroll(t, "pump-2")}.open(t, other)
		until := c.identity.Certificate().NotAfter.Sub(clock.Now())
		clock.set(until / 2) // still good
		time.Sleep(2 * time.Second)
		lives(t, "the clock was set, the certificate is good", here)
		lives(t, "the clock was set, the certificate is good", there)
		clock.set(until + time.Hour)
		endsWithin(t, "the clock was set beyond the end of the certificate", here, 5*time.Second)
		endsWithin(t, "the clock was set beyond the end of the certificate", there, 5*time.Second)
	}, countersigntest.Options{Now: clock.Now})
}

// TestDoctorComparesClocks has a node whose clock is not that of the database, and one
// whose clock is behind what the log holds.
func TestDoctorComparesClocks(t *testing.T) {
	for name, tt := range map[string]struct {
		database countersigntest.Database
		off      time.Duration
		want     string // in the message of a failed check; empty: the check does not fail
	}{
		"as PostgreSQL's":        {countersigntest.Postgres, 0, ""},
		"a little ahead":         {countersigntest.Postgres, 10 * time.Second, ""},
		"ahead of PostgreSQL's":  {countersigntest.Postgres, 40 * time.Second, "differs from the database's by "},
		"behind PostgreSQL's":    {countersigntest.Postgres, -40 * time.Second, "differs from the database's by "},
		"SQLite":                 {countersigntest.SQLite, 0, ""},
		"ahead of the log":       {countersigntest.SQLite, 40 * time.Second, ""}, // time passes
		"a little behind":        {countersigntest.SQLite, -10 * time.Second, ""},
		"behind its own log":     {countersigntest.SQLite, -40 * time.Second, "behind the newest event"},
		"a day behind, a rescue": {countersigntest.SQLite, -24 * time.Hour, "behind the newest event"},
	} {
		t.Run(name, func(t *testing.T) {
			clock := &wallClock{}
			s := countersigntest.Start(t, countersigntest.Options{Database: tt.database, Now: clock.Now})
			s.Enroll(t, "pump-1")
			clock.set(tt.off)
			d, err := s.Admin.Doctor(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range d.Checks {
				if c.Name != "clock" {
					continue
				}
				if failed := c.Level == api.LevelFail; failed != (tt.want != "") || failed && (!strings.Contains(c.Message, tt.want) || c.Fix == "") {
					t.Errorf("got %+v, want a failure with %q", c, tt.want)
				}
				return
			}
			t.Errorf("no check of the clock: %+v", d.Checks)
		})
	}
}
