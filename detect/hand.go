package detect

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

// handOver moves the cursor to the machine's event, with the findings that no other
// node has handed over. It tries until it can or ctx ends: the machine has moved on
// already, so what it found would be lost.
func (w *Watch) handOver(ctx context.Context, list []found) error {
	for {
		given, err := w.commit(ctx, list)
		if err == nil {
			for i := range given {
				if w.Observe != nil {
					w.Observe(given[i].Rule, given[i].Severity)
				}
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.log().ErrorContext(ctx, "findings not handed over", "findings", len(list), "error", err, "retry_in", pollEvery)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

func (w *Watch) commit(ctx context.Context, list []found) (given []countersign.Finding, err error) {
	if seq, due, err := cursors(ctx, w.DB); err != nil || seq >= w.at && len(fresh(list, seq, due)) == 0 {
		return nil, err
	}
	// An alert must not wait for the space that it is about. On a full disk there are no
	// events to read but those of emergencies.
	err = w.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		given = nil
		if err := tx.Lock(ctx, "detect"); err != nil {
			return err
		}
		seq, due, err := cursors(ctx, tx)
		if err != nil {
			return err
		}
		last := due
		for _, f := range fresh(list, seq, due) {
			given = append(given, f.Finding)
			last = max(last, store.Micros(f.due))
		}
		if len(given) > 0 {
			if err := w.Handle(ctx, tx, given); err != nil {
				return fmt.Errorf("couldn't hand over %d findings: %w", len(given), err)
			}
		}
		if last > due {
			if err := event.MoveCursor(ctx, tx, dueName, last); err != nil {
				return err
			}
		}
		if w.at <= seq {
			return nil
		}
		return event.MoveCursor(ctx, tx, cursorName, w.at)
	})
	return given, err
}

// fresh are the findings that were not handed over by when the cursors stood there.
func fresh(list []found, seq, due int64) []found {
	var keep []found
	for _, f := range list {
		if f.seq > seq || f.seq == 0 && store.Micros(f.due) > due {
			keep = append(keep, f)
		}
	}
	return keep
}

// cursors reads up to which event, and up to which moment, all was handed over.
func cursors(ctx context.Context, r store.Reader) (seq, due int64, err error) {
	if seq, err = event.Cursor(ctx, r, cursorName); err != nil {
		return 0, 0, err
	}
	due, err = event.Cursor(ctx, r, dueName)
	return seq, due, err
}

// learnUsual reads what is usual in the fleets that the events enroll devices in.
func (w *Watch) learnUsual(ctx context.Context, events []countersign.Event) error {
	w.usuals = map[string]countersign.Usual{}
	for i := range events {
		e := &events[i]
		if w.Usual == nil || e.Type != countersign.CertIssued && e.Type != countersign.CertAccepted || !first(e) {
			continue
		}
		if _, known := w.usuals[e.Fleet]; known {
			continue
		}
		u, err := w.Usual(ctx, e.Fleet)
		if err != nil && countersign.CodeOf(err) != countersign.NotFound {
			return fmt.Errorf("couldn't read the rules of fleet %s: %w", e.Fleet, err)
		}
		w.usuals[e.Fleet] = u
	}
	return nil
}

func (w *Watch) log() *slog.Logger {
	if w.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return w.Log
}

// waker wakes one goroutine; the zero waker works.
type waker struct {
	once sync.Once
	c    chan struct{}
}

func (b *waker) wake() {
	select {
	case b.wait() <- struct{}{}:
	default:
	}
}

func (b *waker) wait() chan struct{} {
	b.once.Do(func() { b.c = make(chan struct{}, 1) })
	return b.c
}
