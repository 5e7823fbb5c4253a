package event

import (
	"context"

	"github.com/countersign-iot/countersign"
)

// PositionSQL is an SQL expression: the position of the log as the statement around
// it sees it. A row that is written with it, in the transaction that also appends its
// event, is before all that sees that event. The newest event must never be deleted.
const PositionSQL = `(SELECT COALESCE(MAX(id), 0) FROM event)`

// Position returns the position of the log as this process knows it: the id of the
// newest event that it has recorded or read. What another node recorded in the last
// second may be missing, so an act of another node can seem later than it was, but
// never earlier. Where the log cannot be read it is 0, and every act seems later.
func (l *Log) Position(ctx context.Context) countersign.Position {
	if p := l.position.Load(); p > 0 {
		return countersign.Position(p)
	}
	l.look(ctx)
	return countersign.Position(l.position.Load())
}

// look reads the position that all nodes have brought the log to.
func (l *Log) look(ctx context.Context) {
	var id int64
	if err := l.DB.QueryRow(ctx, `SELECT COALESCE(MAX(id), 0) FROM event`).Scan(&id); err != nil {
		return // the last one known is kept
	}
	l.passed(id)
}

// passed notes that an event is durable.
func (l *Log) passed(id int64) {
	for {
		known := l.position.Load()
		if id <= known || l.position.CompareAndSwap(known, id) {
			return
		}
	}
}
