package hold_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/hold"
)

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, path string) *hold.Book {
	t.Helper()
	b, err := hold.Open(path, func() time.Time { return start })
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func place(t *testing.T, b *hold.Book, h hold.Hold) hold.Hold {
	t.Helper()
	in, _, saved, err := b.Place(h)
	if err != nil || saved != nil {
		t.Fatalf("Place: %v, %v", err, saved)
	}
	return in
}

func TestHoldsSurviveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "holds.json")
	b := open(t, path)
	first := place(t, b, hold.Hold{Act: hold.Revoke, Device: "pump-1", Reason: countersign.KeyCompromise, Actor: countersign.OperatorActor("ann"), Note: "stolen"})
	if again := place(t, b, hold.Hold{Act: hold.Revoke, Device: "pump-1"}); again.ID != first.ID {
		t.Errorf("the same act twice: got holds %s and %s, want one", first.ID, again.ID)
	}
	second := place(t, b, hold.Hold{Act: hold.Suspend, Device: "pump-2"})
	if _, err := b.Drop(second.ID, countersign.OperatorActor("bob"), "cli"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: got %v, %v, want mode 600", info, err)
	}
	b = open(t, path)
	list := b.List()
	if len(list) != 2 || list[0] != first || !list[1].Dropped() || b.Len() != 1 {
		t.Errorf("after a restart: got %+v, want %+v and one that was dropped", list, first)
	}
	if err := b.Refuse("pump-1"); countersign.CodeOf(err) != countersign.DeviceOnHold {
		t.Errorf("pump-1: got %v, want it refused", err)
	}
	for _, device := range []string{"pump-2", "pump-3", ""} {
		if err := b.Refuse(device); err != nil {
			t.Errorf("%q: got %v, want it not refused", device, err)
		}
	}
	for _, h := range list {
		if err := b.Record(h.ID, func(hold.Hold) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if b = open(t, path); len(b.List()) != 0 {
		t.Errorf("settled holds came back: %+v", b.List())
	}
}

// TestDropWaitsForAnAttemptToRecord drops a hold while its act is being recorded. Where
// that succeeds, the operator must not be answered that the hold was dropped; where it fails, the
// next attempt must record the drop and not the act. Two attempts never run at once.
func TestDropWaitsForAnAttemptToRecord(t *testing.T) {
	for name, outcome := range map[string]error{"recorded": nil, "failed": errors.New("no database")} {
		t.Run(name, func(t *testing.T) {
			b := open(t, filepath.Join(t.TempDir(), "holds.json"))
			h := place(t, b, hold.Hold{Act: hold.Suspend, Device: "pump-1"})
			var running atomic.Int32
			begun, release := make(chan struct{}, 2), make(chan struct{})
			for range 2 {
				go func() {
					_ = b.Record(h.ID, func(hold.Hold) error {
						if running.Add(1) > 1 {
							t.Error("two attempts at once")
						}
						defer running.Add(-1)
						begun <- struct{}{}
						<-release
						return outcome
					})
				}()
			}
			<-begun
			dropped := make(chan error, 1)
			go func() {
				_, err := b.Drop(h.ID, countersign.OperatorActor("ann"), "cli")
				dropped <- err
			}()
			select {
			case err := <-dropped:
				t.Fatalf("dropped in the middle of an attempt: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			close(release)
			if err := <-dropped; outcome == nil && countersign.CodeOf(err) != countersign.NotFound || outcome != nil && err != nil {
				t.Errorf("drop after an attempt that ended with %v: got %v", outcome, err)
			}
			if outcome == nil {
				return
			}
			var last hold.Hold
			if err := b.Record(h.ID, func(now hold.Hold) error { last = now; return nil }); err != nil || !last.Dropped() {
				t.Errorf("the next attempt: got %+v, %v, want the dropped hold", last, err)
			}
		})
	}
}

// TestHoldsAreBounded begins with a file of one hold less than there may be, each with
// texts of full length: that many are read, one more is placed and survives a restart,
// and the next is refused. Placing all of them one by one would write the file a thousand times.
func TestHoldsAreBounded(t *testing.T) {
	const most = 1000
	path := filepath.Join(t.TempDir(), "holds.json")
	b := open(t, path)
	first := place(t, b, hold.Hold{
		Act: hold.Suspend, Device: strings.Repeat("d", countersign.MaxDeviceID), Actor: countersign.OperatorActor(strings.Repeat("a", 128)),
		Note: strings.Repeat("\x01", 400), Via: strings.Repeat("\x01", 400), // six octets each, in JSON
	})
	if len(first.Note) != 300 || len(first.Via) != 300 {
		t.Errorf("texts of a hold: got %d and %d octets, want them cut to 300", len(first.Note), len(first.Via))
	}
	full := func(n int) *hold.Book {
		t.Helper()
		holds := make([]hold.Hold, n)
		for i := range holds {
			holds[i] = first
			holds[i].ID, holds[i].Device = fmt.Sprintf("hold-%d", i), fmt.Sprintf("%s%d", first.Device[:120], i)
			if i > 0 { // a hold that was dropped is kept until that is recorded
				holds[i].Alert, holds[i].DroppedBy, holds[i].DroppedVia, holds[i].DroppedAt = first.ID, first.Actor, "rest", start
			}
		}
		text, err := json.Marshal(map[string]any{"version": 1, "holds": holds})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := hold.Open(path, func() time.Time { return start })
		if n <= most && (err != nil || len(b.List()) != n) {
			t.Fatalf("Open of %d holds: got %v", n, err)
		}
		if n > most && err == nil {
			t.Errorf("Open of %d holds: got no error", n)
		}
		return b
	}
	full(most + 1)
	b = full(most - 1)
	last := place(t, b, hold.Hold{Act: hold.Suspend, Device: "the last", Note: first.Note, Via: first.Via})
	if _, _, _, err := b.Place(hold.Hold{Act: hold.Suspend, Device: "one-more"}); countersign.CodeOf(err) != countersign.Conflict {
		t.Errorf("one too many: got %v, want Conflict", err)
	}
	if again, placed, saved, err := b.Place(hold.Hold{Act: hold.Suspend, Device: "the last"}); placed || saved != nil || err != nil || again.ID != last.ID {
		t.Errorf("the same act once more: got %v, %v, %v, want the hold that is there", placed, saved, err)
	}
	b = open(t, path)
	if n := len(b.List()); n != most || b.Len() != 2 || b.Refuse("the last") == nil || b.Refuse("one-more") != nil {
		t.Errorf("after a restart: got %d holds, %d in force, want %d, all but two dropped", n, b.Len(), most)
	}
	if _, _, _, err := b.Place(hold.Hold{Act: hold.Suspend, Device: "one-more"}); countersign.CodeOf(err) != countersign.Conflict {
		t.Errorf("one too many after a restart: got %v, want Conflict", err)
	}
	if err := b.Record(last.ID, func(hold.Hold) error { return nil }); err != nil {
		t.Fatal(err)
	}
	place(t, b, hold.Hold{Act: hold.Suspend, Device: "one-more"}) // there is room again
}

// TestHoldThatCannotBeSavedIsInForce lets the file not be written: the hold counts in
// memory, and both the caller and Volatile say that it is not saved.
func TestHoldThatCannotBeSavedIsInForce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	b := open(t, filepath.Join(dir, "holds.json")) // the folder is missing
	_, placed, saved, err := b.Place(hold.Hold{Act: hold.Revoke, Device: "pump-1"})
	if err != nil || !placed || !errors.Is(saved, fs.ErrNotExist) || b.Volatile() == nil || b.Refuse("pump-1") == nil {
		t.Fatalf("Place: got placed %v, saved %v, %v; want it in force and not saved", placed, saved, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b.Save()
	if b.Volatile() != nil || len(open(t, filepath.Join(dir, "holds.json")).List()) != 1 {
		t.Errorf("Save: got %v, want the hold in the file", b.Volatile())
	}
}

func TestDamagedHoldsAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "holds.json")
	for _, text := range []string{"", "{", `{"version":2,"holds":[]}`, `{"version":1,"devices":[]}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := hold.Open(path, time.Now); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: got %v, want an error that names the file", text, err)
		}
	}
}
