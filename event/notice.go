package event

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// maxNotice is the longest payload, in octets, that PostgreSQL accepts.
const maxNotice = 7999

// notice is the message that one node sends to the others about an event.
type notice struct {
	From  string
	ID    int64 // of the event; 0 from a node of an earlier version
	Event countersign.Event
}

// notify sends an event to the other nodes. If its texts are too long, it sends only those
// that the receivers need, because a revocation must not fail for its notice.
func (l *Log) notify(ctx context.Context, tx *store.Tx, id int64, e countersign.Event) error {
	note, err := json.Marshal(notice{l.self, id, e})
	if err == nil && len(note) > maxNotice {
		e.Reason, e.Data = "", essential(e.Data)
		note, err = json.Marshal(notice{l.self, id, e})
	}
	if err != nil {
		return fmt.Errorf("encode notice: %w", err)
	}
	return tx.Notify(ctx, string(note))
}

// essential returns the data of an event that names what it ends, see Event.Cut.
func essential(data map[string]string) map[string]string {
	kept := map[string]string{}
	for _, key := range []string{"session", "secret", "token", "kind", "credential"} {
		if v, ok := data[key]; ok {
			kept[key] = v
		}
	}
	return kept
}

// listen receives the notices of other nodes until ctx ends. For notices that do not
// arrive, follow reads the log.
func (l *Log) listen(ctx context.Context) {
	err := l.DB.Listen(ctx, func(payload string) {
		var n notice
		if err := json.Unmarshal([]byte(payload), &n); err != nil {
			l.Log.WarnContext(ctx, "notice not understood", "error", err)
			return
		}
		if n.From != l.self && l.missed.claim(n.ID) {
			l.received(n.Event)
		}
	}, l.streaming)
	l.up.Store(false)
	if err != nil {
		l.Log.ErrorContext(ctx, "notices of other nodes ended", "error", err)
	}
}
