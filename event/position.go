package event

import (
	"context"

	"github.com/countersign-iot/countersign"
)

// PositionSQL is an SQL expression for the position of the log, as the statement around it
// sees it. A row that is written with it, in the transaction that also appends its event,
// has a lower position than every row whose transaction sees that event. The newest event
// must never be deleted.
const PositionSQL = `(SELECT COALESCE(MAX(id), 0) FROM event)`

// Position returns the position of the log as this process knows it: the id of the
// newest event that it has recorded or read. Events that another node recorded in the last
// second may be missing, so an act of another node can appear later than it was, but never
// earlier. If the log cannot be read, it is 0, and every act appears later.
func (l *Log) Position(ctx context.Context) countersign.Position {
	if p := l.position.Load(); p > 0 {
		return countersign.Position(p)
	}
	l.look(ctx)
	return countersign.Position(l.position.Load())
}

// look reads the position of the log from the database, with the events of all nodes.
func (l *Log) look(ctx context.Context) {
	var id int64
	if err := l.DB.QueryRow(ctx, `SELECT COALESCE(MAX(id), 0) FROM event`).Scan(&id); err != nil {
		return // keep the last known position
	}
	l.passed(id)
}

// passed advances the position to an event that is durable.
func (l *Log) passed(id int64) {
	for {
		known := l.position.Load()
		if id <= known || l.position.CompareAndSwap(known, id) {
			return
		}
	}
}
