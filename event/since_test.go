package event_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// TestListSinceFindsWhatClocksPutOutOfOrder lists events since a time where times are not
// in the order of the log: clocks differ and are set back. Some events are sealed.
func TestListSinceFindsWhatClocksPutOutOfOrder(t *testing.T) {
	const events, sealed = 7000, 6000
	at := func(i int) int64 { // minutes: they go on, but a clock was ahead for a while, and one behind
		switch {
		case i > 1000 && i < 1100:
			return int64(i + 4000)
		case i > 5000 && i < 5200:
			return int64(i - 4500)
		}
		return int64(i)
	}
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		fill := func(from, to int) {
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				for i := from; i < to; i++ {
					_, err := tx.Exec(ctx, `INSERT INTO event (at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data)
						VALUES ($1, 'device.changed', 'system', $2, '', '', '', '', '', '', $3, '')`, at(i)*60e6, fmt.Sprintf("d%d", i%3), fmt.Sprint(i))
					if err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		fill(0, sealed)
		for {
			n, err := l.Seal(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
		}
		fill(sealed, events)
		for _, since := range []int64{1, 600, 1050, 4900, 5050, 5100, 5999, 6500, 6999, 7000} {
			for _, f := range []event.Filter{{}, {Newest: true}, {Device: "d1"}, {Type: "device.changed"}, {Device: "d2", Type: "device.changed", Newest: true}} {
				want := 0
				for i := range events {
					if at(i) >= since && (f.Device == "" || f.Device == fmt.Sprintf("d%d", i%3)) {
						want++
					}
				}
				f.Since = time.UnixMicro(since * 60e6)
				got := all(t, l, f)
				if len(got) != want {
					t.Errorf("since minute %d of %+v: got %d events, want %d", since, f, len(got), want)
				}
			}
		}
	})
}
