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

// handOver passes the findings that no other node has handed over to Handle, and moves the
// cursor to the machine's last event. It retries until it succeeds or ctx ends, because the
// machine does not find them a second time.
func (w *Watch) handOver(ctx context.Context, list []found) error {
	for {
		handed, err := w.commit(ctx, list)
		if err == nil {
			for i := range handed {
				if w.Observe != nil {
					w.Observe(handed[i].Rule, handed[i].Severity)
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

// commit calls Handle and moves the cursors, in one transaction. It returns the findings
// that it handed over.
func (w *Watch) commit(ctx context.Context, list []found) (handed []countersign.Finding, err error) {
	if seq, due, err := cursors(ctx, w.DB); err != nil || seq >= w.at && len(fresh(list, seq, due)) == 0 {
		return nil, err
	}
	// The alert about a full disk must not wait for free space. On a full disk, only events
	// of emergencies are recorded, so this uses little of the reserve.
	err = w.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		handed = nil
		if err := tx.Lock(ctx, "detect"); err != nil {
			return err
		}
		seq, due, err := cursors(ctx, tx)
		if err != nil {
			return err
		}
		last := due
		for _, f := range fresh(list, seq, due) {
			handed = append(handed, f.Finding)
			last = max(last, store.Micros(f.due))
		}
		if len(handed) > 0 {
			if err := w.Handle(ctx, tx, handed); err != nil {
				return fmt.Errorf("couldn't hand over %d findings: %w", len(handed), err)
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
	return handed, err
}

// fresh returns the findings that, by the cursors, no node has handed over.
func fresh(list []found, seq, due int64) []found {
	var keep []found
	for _, f := range list {
		if f.seq > seq || f.seq == 0 && store.Micros(f.due) > due {
			keep = append(keep, f)
		}
	}
	return keep
}

// cursors reads the event, and the time, up to which all findings were handed over.
func cursors(ctx context.Context, r store.Reader) (seq, due int64, err error) {
	if seq, err = event.Cursor(ctx, r, cursorName); err != nil {
		return 0, 0, err
	}
	due, err = event.Cursor(ctx, r, dueName)
	return seq, due, err
}

// learnUsual reads the usual networks and hours of the fleets in which the events enroll
// devices.
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

// waker wakes one goroutine. The zero value is ready to use.
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
