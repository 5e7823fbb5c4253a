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
	// batch is the most events read at once: their findings are one transaction.
	batch = 500
	// pollEvery is how late a finding may be when no notice wakes the watch, and how
	// often one that could not be handed over is tried again.
	pollEvery = 500 * time.Millisecond
	// sealTime is how long an event that woke the watch takes until it is sealed.
	sealTime = 150 * time.Millisecond
	// idleLag is how far behind the clock time is taken to have passed where no event
	// says so: one that happened by then has been sealed, or the log is in trouble.
	idleLag = 10 * time.Second
	// maxReplay bounds the events read again at a start, a few seconds' worth.
	maxReplay = 500_000

	// cursorName is the position of the watch in the log, dueName up to when what
	// became due by time alone was handed over (microseconds since 1970).
	cursorName = "detect"
	dueName    = "detect.due"
)

// Watch follows the sealed log and hands over what the detectors find. Set the
// fields, then Run.
//
// Every node runs one: each has seen everything, and takes over at once when
// another one dies. The node that reaches the end of a batch first hands its findings over,
// in the transaction that moves the common cursor; the others' are dropped. So
// a finding is handed over once, whatever crashes. After a restart the detectors
// read the last week before the cursor again, in silence.
type Watch struct {
	DB  *store.DB
	Now func() time.Time
	Log *slog.Logger // nil discards
	// Handle takes the findings of a batch in the transaction that marks it done. It
	// may run more than once, as with [store.DB.Write]; with an error the batch is
	// tried again. A function, because responses are decided by a package that imports
	// this one.
	Handle func(ctx context.Context, tx *store.Tx, findings []countersign.Finding) error
	// Usual returns what is usual in a fleet and not noted; nil: nothing is noted. A
	// function, because detectors know events and no registry.
	Usual func(ctx context.Context, fleet string) (countersign.Usual, error)
	// Observe is called with each finding once it is handed over; nil: no calls. A
	// function, because metrics belong to the server.
	Observe func(rule string, severity countersign.Severity)

	machine *machine
	usuals  map[string]countersign.Usual // of the batch's fleets
	at      int64                        // the last event that the machine has seen
	mark    mark
	woken   waker
}

// Wake hints that something happened. It never blocks.
func (w *Watch) Wake() { w.woken.wake() }

// Run watches until ctx ends.
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

// start makes the detectors remember what they would if the server had not been
// down. What they find in it was handed over then.
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
		if w.at = cursor; len(events) > 0 { // none: the end of the log was removed
			w.at = min(cursor, events[len(events)-1].Seq)
		}
	}
	return w.setMark(ctx, cursor)
}

// replayFrom finds the event before the first to read again, by halves: times rise
// with the sequence, but for moments.
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

// catchUp reads what has been sealed, and that time has passed.
func (w *Watch) catchUp(ctx context.Context) error {
	for ctx.Err() == nil {
		events, err := event.Sealed(ctx, w.DB, w.at, batch)
		if err != nil {
			return err
		}
		if err := w.moved(ctx, events); err != nil {
			return err
		}
		if err := w.learnUsual(ctx, events); err != nil {
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
