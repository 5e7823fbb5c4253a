package event

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// maxNotice is the longest payload that PostgreSQL takes.
	maxNotice = 7999
	// doubt is how far back of the moment that a stream of notices was found dead
	// it may have been so already: the stream's own pings, the longest transaction
	// and the difference of two nodes' clocks, generously.
	doubt = time.Minute
	// missedPage is how many events are read at once to find those missed.
	missedPage = 500
	// missedRetry is the pause after a failed read of them.
	missedRetry = time.Second
)

// notice is what one node tells the others.
type notice struct {
	From  string
	Event countersign.Event
}

// notify tells the other nodes. Where the words are too many it tells what
// happened without them: a revocation must not fail for its note.
func (l *Log) notify(ctx context.Context, tx *store.Tx, e countersign.Event) error {
	note, err := json.Marshal(notice{l.self, e})
	if err == nil && len(note) > maxNotice {
		e.Reason, e.Data = "", nil
		note, err = json.Marshal(notice{l.self, e})
	}
	if err != nil {
		return fmt.Errorf("encode notice: %w", err)
	}
	return tx.Notify(ctx, string(note))
}

// listen hears other nodes until ctx ends. The log is the backstop of the notices:
// what was appended while they could not reach us is told from it, before Live
// says yes again.
func (l *Log) listen(ctx context.Context) {
	since := l.Now().Add(-doubt)
	err := l.DB.Listen(ctx, func(payload string) {
		var n notice
		if err := json.Unmarshal([]byte(payload), &n); err != nil {
			l.Log.WarnContext(ctx, "notice not understood", "error", err)
			return
		}
		if n.From != l.self {
			l.heard(n.Event)
		}
	}, func(up bool) {
		if !up {
			l.up.Store(false)
			since = l.Now().Add(-doubt)
			return
		}
		l.up.Store(l.catchUp(ctx, since))
	})
	l.up.Store(false)
	if err != nil {
		l.Log.ErrorContext(ctx, "notices of other nodes ended", "error", err)
	}
}

// catchUp tells subscribers of what matters since a time, and reports whether it
// could; it tries until ctx ends.
func (l *Log) catchUp(ctx context.Context, since time.Time) bool {
	f := Filter{Newest: true, Limit: missedPage}
	for ctx.Err() == nil {
		page, next, err := l.List(ctx, f)
		if err != nil {
			l.Log.WarnContext(ctx, "missed events not read", "error", err, "retry_in", missedRetry)
			select {
			case <-ctx.Done():
			case <-time.After(missedRetry):
			}
			continue
		}
		for _, e := range page {
			if e.Type.Kind().Urgent && !e.At.Before(since) {
				l.heard(e)
			}
		}
		if next == 0 || page[len(page)-1].At.Before(since) {
			return true
		}
		f.After = next
	}
	return false
}
