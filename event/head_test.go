package event_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// fill appends n events and seals them.
func fill(t *testing.T, l *event.Log, n int) {
	t.Helper()
	for i := range n {
		appendAll(t, l, countersign.Event{Type: countersign.SessionOpened, Device: fmt.Sprintf("device-%d", i)})
	}
	sealAll(t, l)
}

func moveCursor(t *testing.T, l *event.Log, reader string, seq int64) {
	t.Helper()
	err := l.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return event.MoveCursor(ctx, tx, reader, seq) })
	if err != nil {
		t.Fatalf("MoveCursor: %v", err)
	}
}

// TestVerifyMissesTheEndThatWasRemoved removes rows from the end of the log, which the chain
// alone cannot show, together with all records of them but one.
func TestVerifyMissesTheEndThatWasRemoved(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change []string
		at     int64
		say    string
	}{
		{"newest rows", []string{`DELETE FROM event WHERE seq > 6`}, 7, "ends at event 6, but event 9 was sealed"},
		{"all rows", []string{`DELETE FROM event`}, 1, "ends at event 0, but event 9 was sealed"},
		{"rows, record set back", []string{
			`DELETE FROM event WHERE seq > 6`, `UPDATE event_head SET seq = 6, hash = (SELECT hash FROM event WHERE seq = 6)`,
		}, 7, "ends at event 6, but its reader detect has read event 8"},
		{"rows and record", []string{`DELETE FROM event WHERE seq > 6`, `DELETE FROM event_head`, `DELETE FROM event_cursor`}, 7, "the record of its end is missing"},
		{"rows and record, all of them", []string{`DELETE FROM event`, `DELETE FROM event_head`}, 1, "ends at event 0, but its reader detect has read event 8"},
		{"record alone", []string{`UPDATE event_head SET hash = (SELECT hash FROM event WHERE seq = 3)`}, 9, "event 9 is not the one that was sealed"},
		{"record ahead", []string{`UPDATE event_head SET seq = 12`}, 10, "ends at event 9, but event 12 was sealed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			storetest.Each(t, func(t *testing.T, db *store.DB) {
				l := newLog(db)
				fill(t, l, 9)
				moveCursor(t, l, "detect", 8)
				moveCursor(t, l, "detect.due", 1<<50) // a time, which is no position
				if rep, err := l.Verify(t.Context()); err != nil || rep.BrokenAt != 0 || rep.Problem != "" {
					t.Fatalf("before: got %+v, %v, want it intact", rep, err)
				}
				for _, q := range tt.change {
					exec(t, db, q)
				}
				rep, err := l.Verify(t.Context())
				if err != nil || rep.BrokenAt != tt.at || !strings.Contains(rep.Problem, tt.say) {
					t.Errorf("Verify: got %+v, %v, want %q at %d", rep, err, tt.say, tt.at)
				}
				problem, err := l.CheckEnd(t.Context())
				if err != nil || tt.name != "record alone" && problem != rep.Problem {
					t.Errorf("CheckEnd: got %q, %v, want %q", problem, err, rep.Problem)
				}
			})
		})
	}
}

// TestSealGoesOnBehindARemovedEnd removes the end of the log and appends more events: they
// must get higher numbers than the removed ones, so that a reader sees them, and the gap
// must be found however many there are.
func TestSealGoesOnBehindARemovedEnd(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change []string
		want   int64
	}{
		{"record kept", nil, 10},
		{"record set back", []string{`UPDATE event_head SET seq = 3, hash = (SELECT hash FROM event WHERE seq = 3)`}, 9},
		{"record gone", []string{`DELETE FROM event_head`}, 9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			storetest.Each(t, func(t *testing.T, db *store.DB) {
				l := newLog(db)
				fill(t, l, 9)
				moveCursor(t, l, "detect", 8)
				exec(t, db, `DELETE FROM event WHERE seq > 3`)
				for _, q := range tt.change {
					exec(t, db, q)
				}
				fill(t, l, 2)
				list := all(t, l, event.Filter{})
				if got := list[len(list)-2].Seq; got != tt.want {
					t.Errorf("the next event has sequence %d, want %d", got, tt.want)
				}
				fill(t, newLog(db), 5) // after a restart too
				if problem, err := l.CheckEnd(t.Context()); err != nil || !strings.Contains(problem, "are missing") {
					t.Errorf("CheckEnd: got %q, %v, want the gap", problem, err)
				}
				rep, err := l.Verify(t.Context())
				if err != nil || rep.BrokenAt != 4 || !strings.Contains(rep.Problem, "event 4 is missing") {
					t.Errorf("Verify: got %+v, %v, want event 4 to be missed", rep, err)
				}
			})
		})
	}
}

// TestHeadOutlivesTheRows checks that Head does not change if rows are removed.
func TestHeadOutlivesTheRows(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		if seq, hash, err := l.Head(t.Context()); err != nil || seq != 0 || hash != nil {
			t.Errorf("empty log: got %d, %x, %v, want 0 and nothing", seq, hash, err)
		}
		fill(t, l, 4)
		rep, err := l.Verify(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		exec(t, db, `DELETE FROM event WHERE seq > 1`)
		if seq, hash, err := l.Head(t.Context()); err != nil || seq != 4 || string(hash) != string(rep.Head) {
			t.Errorf("got %d, %x, %v, want 4 and %x", seq, hash, err, rep.Head)
		}
	})
}
