package event

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/countersign-iot/countersign/store"
)

// blockIDs is how many ids of events share a row of event_time, as the migration has it. A
// list since a time reads at most so many events before the first that it wants, and a row
// for each block of the log: some thousands for 10,000,000 events.
const blockIDs = 2048

// blockTimes is the time of the newest event of blocks.
type blockTimes map[int64]int64

// add adds a sealed event.
func (b blockTimes) add(e *row) {
	block := e.id / blockIDs
	b[block] = max(b[block], store.Micros(e.At))
}

// save records b in the transaction that sealed its events.
func (b blockTimes) save(ctx context.Context, tx *store.Tx) error {
	for _, block := range slices.Sorted(maps.Keys(b)) {
		_, err := tx.Exec(ctx, `INSERT INTO event_time (block, newest) VALUES ($1, $2) ON CONFLICT (block) DO UPDATE SET
			newest = CASE WHEN event_time.newest < excluded.newest THEN excluded.newest ELSE event_time.newest END`, block, b[block])
		if err != nil {
			return fmt.Errorf("record the times of events: %w", err)
		}
	}
	return nil
}

// firstSince returns an id before which no event happened at since or later. It is at most
// blockIDs lower than the id of the first such event, or of the first unsealed event.
func firstSince(ctx context.Context, r store.Reader, since time.Time) (id int64, err error) {
	var block, unsealed, end int64
	err = r.QueryRow(ctx, `SELECT COALESCE((SELECT block FROM event_time WHERE newest >= $1 ORDER BY block LIMIT 1), -1),
			COALESCE((SELECT id FROM event WHERE seq IS NULL ORDER BY id LIMIT 1), -1), COALESCE((SELECT MAX(id) FROM event), 0)`,
		store.Micros(since)).Scan(&block, &unsealed, &end)
	if err != nil {
		return 0, fmt.Errorf("look for the first event since %s: %w", since.UTC().Format(time.RFC3339), store.Wrap(err))
	}
	id = end + 1
	if block >= 0 {
		id = min(id, block*blockIDs)
	}
	if unsealed >= 0 {
		id = min(id, unsealed)
	}
	return id, nil
}
