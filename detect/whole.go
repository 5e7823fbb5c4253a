package detect

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

// mark is the event that the watch has read last. It is checked to still be in the log.
type mark struct {
	seq      int64 // 0: none
	hash     []byte
	reported time.Time // when a finding was last handed over that the log was shortened
}

// setMark sets the mark to the event that was read last before the start. If that event is
// not in the log any more, the next call of moved reports it.
func (w *Watch) setMark(ctx context.Context, cursor int64) (err error) {
	w.mark = mark{seq: cursor, reported: w.mark.reported}
	if cursor > 0 {
		w.mark.hash, err = event.HashAt(ctx, w.DB, cursor)
	}
	return err
}

// moved checks that the event that was read last is still in the log and that events, those
// read now, follow it without a gap. Then it moves the mark to the last of events. A fault
// is handed over at once, and again after the rule's Again.
func (w *Watch) moved(ctx context.Context, events []countersign.Event) error {
	problem, err := w.missing(ctx, events)
	if err != nil {
		return err
	}
	if problem != "" {
		if err := w.reportShort(ctx, problem); err != nil {
			return err
		}
	}
	if len(events) == 0 {
		return nil
	}
	last := &events[len(events)-1]
	w.mark.seq, w.mark.hash = last.Seq, last.Hash
	return nil
}

// missing returns what is missing or changed in the log between the event that was read
// last and those that were read now; empty if nothing is.
func (w *Watch) missing(ctx context.Context, events []countersign.Event) (string, error) {
	last := w.mark.seq
	if last > 0 {
		hash, err := event.HashAt(ctx, w.DB, last)
		switch {
		case err != nil:
			return "", err
		case hash == nil:
			return fmt.Sprintf("event %d, which has been read, is no longer in the log: its end was removed", last), nil
		case !bytes.Equal(hash, w.mark.hash):
			return fmt.Sprintf("event %d, which has been read, is now a different one: the log was rewritten", last), nil
		}
	}
	for i := range events {
		if next := events[i].Seq; last > 0 && next != last+1 {
			return fmt.Sprintf("the events between %d and %d are missing in the log", last, next), nil
		}
		last = events[i].Seq
	}
	return "", nil
}

// reportShort hands over a finding that the log was shortened. It is no finding of the
// machine, because no event completes it. Each node reports it by itself.
func (w *Watch) reportShort(ctx context.Context, problem string) error {
	r := w.machine.rules[LogShortened]
	now := w.Now()
	if !w.mark.reported.IsZero() && now.Sub(w.mark.reported) < r.Again {
		return nil
	}
	f := countersign.Finding{
		Rule: r.Name, Severity: r.Severity, At: now, Subject: "server", Summary: problem, Evidence: map[string]string{"problem": problem},
	}
	err := w.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error { return w.Handle(ctx, tx, []countersign.Finding{f}) })
	if err != nil {
		return fmt.Errorf("couldn't hand over that the log was shortened: %w", err)
	}
	w.mark.reported = now
	if w.Observe != nil {
		w.Observe(f.Rule, f.Severity)
	}
	return nil
}
