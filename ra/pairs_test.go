package ra_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
)

// TestADeviceThatReconnectsWithoutPauseFillsNoLog opens and closes a thousand sessions
// of one device within a minute, and a few of another.
func TestADeviceThatReconnectsWithoutPauseFillsNoLog(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		from := netip.MustParseAddrPort("192.0.2.7:4711")
		session := func(device string, n int) countersign.Session {
			return countersign.Session{ID: fmt.Sprintf("%s-%d", device, n), Device: device, Fleet: "default", Gateway: "mqtt", Remote: from, Since: w.clock.Now()}
		}
		for n := range 1000 {
			s := session("loop", n)
			w.Opened(s)
			w.Closed(s, countersign.Ending{Code: countersign.EndClientLeft})
			if n < 5 {
				s := session("honest", n)
				w.Opened(s)
				w.Closed(s, countersign.Ending{Code: countersign.EndClientLeft})
			}
		}
		w.clock.Advance(2 * time.Minute)
		last := session("loop", 1000)
		w.Opened(last)
		if err := w.Events.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		count := func(device string, kind countersign.EventType) (n int, more string) {
			list, _, err := w.Events.List(t.Context(), event.Filter{Device: device, Type: kind})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				if e.Data["more_before"] != "" {
					more = e.Data["more_before"]
				}
			}
			return len(list), more
		}
		most := countersign.DefaultEvents / 2
		opened, more := count("loop", countersign.SessionOpened)
		closed, _ := count("loop", countersign.SessionClosed)
		if opened != most+1 || closed != most || more != fmt.Sprint(1000-most) {
			t.Errorf("got %d openings, %d ends, %q left out, want %d, %d and %d", opened, closed, more, most+1, most, 1000-most)
		}
		if n, _ := count("loop", countersign.BudgetExceeded); n != 1 {
			t.Errorf("budget.exceeded: got %d, want 1", n)
		}
		if n, _ := count("honest", countersign.SessionOpened); n != 5 {
			t.Errorf("the honest device: got %d openings, want 5", n)
		}
	})
}
