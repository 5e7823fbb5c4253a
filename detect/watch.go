package detect

import (
	"context"
	"log/slog"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

const (
	// batch bounds the events that are read at once. Their findings are handed over in one
	// transaction.
	batch = 500
	// pollEvery is how often the log is read if Wake is not called, and how often a
	// failed handover is tried again.
	pollEvery = 500 * time.Millisecond
	// sealTime is how long it takes until the event that led to Wake is sealed.
	sealTime = 150 * time.Millisecond
	// idleLag is how far the time of the detectors is behind the clock while there are no
	// events. An event that happened before that time has been sealed, unless the log has
	// a fault.
	idleLag = 10 * time.Second
	// maxReplay bounds the events that are read again at a start. It takes a few seconds.
	maxReplay = 500_000

	// cursorName is the name of the cursor of the watch in the log. dueName is that of the
	// time (microseconds since 1970) up to which findings without an event were handed over.
	cursorName = "detect"
	dueName    = "detect.due"
)

// Watch reads the sealed log and hands over what the detectors find. Set the fields, then
// call Run.
//
// Every node runs a Watch over the whole log, so that another node continues at once if one
// fails. The node that reaches the end of a batch first hands its findings over, in the
// transaction that moves the common cursor; the other nodes drop theirs. So a finding is
// handed over exactly once, also after a crash. After a restart the detectors read the last
// week before the cursor again, without handing over what they find.
type Watch struct {
	DB  *store.DB
	Now func() time.Time
	Log *slog.Logger // nil discards
	// Handle processes the findings of a batch in the transaction that moves the cursor.
	// It may be called more than once, as with [store.DB.Write]; after an error the batch
	// is tried again. It is a function because the package that decides on responses
	// imports this one.
	Handle func(ctx context.Context, tx *store.Tx, findings []countersign.Finding) error
	// Usual returns the usual networks and hours of enrollment in a fleet; if it is nil,
	// no enrollment is unusual. It is a function because detectors do not read the registry.
	Usual func(ctx context.Context, fleet string) (countersign.Usual, error)
	// Observe is called for each finding after it was handed over; it may be nil. It is a
	// function because the metrics belong to the server.
	Observe func(rule string, severity countersign.Severity)

	machine *machine
	usuals  map[string]countersign.Usual // of the batch's fleets
	at      int64                        // the last event that the machine has processed
	mark    mark
	woken   waker
}

// Wake makes the watch read the log soon. It never blocks.
func (w *Watch) Wake() { w.woken.wake() }

// Run reads the log until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for ready := false; ; {
		var err error
		if !ready {
			err = w.start(ctx)
			ready = err == nil
		}
		if ready {
			err = w.catchUp(ctx)
		}
		if err != nil && ctx.Err() == nil {
			w.log().ErrorContext(ctx, "detectors are behind", "error", err, "retry_in", pollEvery)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-w.woken.wait():
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(sealTime):
			}
		}
	}
}

// start brings the detectors to the state that they would have without the restart: it
// reads the log again up to the cursor. It drops what they find, which was handed over then.
func (w *Watch) start(ctx context.Context) error {
	cursor, _, err := cursors(ctx, w.DB)
	if err != nil {
		return err
	}
	from, err := w.replayFrom(ctx, cursor)
	if err != nil {
		return err
	}
	w.machine = newMachine(func(fleet string) countersign.Usual { return w.usuals[fleet] })
	for w.at = from; w.at < cursor; {
		events, err := event.Sealed(ctx, w.DB, w.at, batch)
		if err != nil {
			return err
		}
		if err := w.learnUsual(ctx, events); err != nil {
			return err
		}
		for i := range events {
			if events[i].Seq <= cursor {
				w.machine.step(&events[i])
			}
		}
		if w.at = cursor; len(events) > 0 { // if there are none, the end of the log was removed
			w.at = min(cursor, events[len(events)-1].Seq)
		}
	}
	return w.setMark(ctx, cursor)
}

// replayFrom returns the event before the first one to read again. It uses binary search,
// because times rise with the sequence number, except for small differences.
func (w *Watch) replayFrom(ctx context.Context, cursor int64) (int64, error) {
	if cursor == 0 {
		return 0, nil
	}
	last, err := event.TimeAt(ctx, w.DB, cursor)
	if err != nil {
		return 0, err
	}
	low, high := max(0, cursor-maxReplay), cursor
	for low < high {
		mid := low + (high-low)/2
		at, err := event.TimeAt(ctx, w.DB, mid+1)
		if err != nil {
			return 0, err
		}
		if last.Sub(at) > memory {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low, nil
}

// catchUp processes the events that were sealed since the last call, and then the time that
// has passed without events.
func (w *Watch) catchUp(ctx context.Context) error {
	for ctx.Err() == nil {
		events, err := event.Sealed(ctx, w.DB, w.at, batch)
		if err != nil {
			return err
		}
		if err := w.learnUsual(ctx, events); err != nil {
			return err
		}
		// After everything that can fail before the events are processed: what is read again
		// must follow the mark.
		if err := w.moved(ctx, events); err != nil {
			return err
		}
		if len(events) == 0 {
			break
		}
		var list []found
		for i := range events {
			list = append(list, w.machine.step(&events[i])...)
		}
		w.at = events[len(events)-1].Seq
		if err := w.handOver(ctx, list); err != nil {
			return err
		}
		if len(events) < batch {
			break
		}
	}
	if list := w.machine.elapse(w.Now().Add(-idleLag)); len(list) > 0 {
		return w.handOver(ctx, list)
	}
	return ctx.Err()
}
