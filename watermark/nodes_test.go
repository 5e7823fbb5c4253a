package watermark_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/watermark"
)

// TestNodesOfRandomNamesAreForgotten starts hosts that have another name each time.
func TestNodesOfRandomNamesAreForgotten(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
		announce := func(n int, name string, every time.Duration) []watermark.Node {
			t.Helper()
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				for i := range n {
					now = now.Add(every)
					if err := watermark.Announce(ctx, tx, fmt.Sprint(name, i), now); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			list, err := watermark.Nodes(t.Context(), db)
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		if list := announce(3, "own-", time.Hour); len(list) != 3 || list[0].Name != "own-2" || !list[0].Seen.Equal(now) {
			t.Fatalf("got %+v, want three, the last first", list)
		}
		now = now.Add(365 * 24 * time.Hour)
		if list := announce(1, "own-", 0); len(list) != 3 || list[0].Name != "own-0" {
			t.Errorf("a year later: got %+v, want the few that there are kept", list)
		}
		if list := announce(1200, "pod-", 12*time.Hour); len(list) < 60 || len(list) > 64 {
			t.Errorf("%d nodes are kept of hosts that start anew twice a day, want those of a month", len(list))
		}
		var rows int
		announce(1200, "burst-", time.Second)
		if err := db.QueryRow(t.Context(), `SELECT count(*) FROM watermark`).Scan(&rows); err != nil || rows != 1000 {
			t.Errorf("%d rows (%v), want 1000 at most", rows, err)
		}
	})
}
