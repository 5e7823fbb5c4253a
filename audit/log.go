package audit

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

const (
	// sealTime is how long a line may wait for its seal: the sealer needs a second.
	sealTime = 5 * time.Minute
	// lossWindow is how far back lost lines are looked for.
	lossWindow = 31 * 24 * time.Hour
)

// lookAtLog looks whether the log is whole: nothing left out, everything sealed, the
// chain unbroken, its end where it was.
func lookAtLog(ctx context.Context, w *work) error {
	found := func(reason string, severity countersign.Severity, summary string, evidence map[string]string) {
		if evidence == nil {
			evidence = map[string]string{}
		}
		w.report(LoggingDisabled, Finding{Reason: reason, Severity: severity, Subject: "server", Summary: summary, Evidence: evidence})
	}
	lost, err := w.lostLines(ctx)
	if err != nil {
		return err
	}
	if lost > 0 {
		found("LOGGING_DISABLED", "", fmt.Sprintf("%d events of the last %s were not written", lost, days(lossWindow)), map[string]string{"lost": strconv.FormatInt(lost, 10)})
	}
	if err := w.restored(ctx, found); err != nil {
		return err
	}
	oldest, err := event.OldestUnsealed(ctx, w.DB)
	if err != nil {
		return err
	}
	if age := w.now.Sub(oldest); !oldest.IsZero() && age > sealTime {
		found("LOG_SEALING_BEHIND", countersign.SeverityHigh, fmt.Sprintf("the oldest event without a seal is %s old", age.Round(time.Second)),
			map[string]string{"oldest": stamp(oldest)})
	}
	rep, err := w.Verify(ctx)
	if err != nil {
		return fmt.Errorf("verify the log: %w", err)
	}
	w.looked(rep.Events, LoggingDisabled)
	problem := rep.Problem
	if rep.BrokenAt == 0 {
		if problem, err = w.lostEnd(ctx, rep); err != nil {
			return err
		}
	}
	if problem != "" {
		found("LOG_CHAIN_BROKEN", countersign.SeverityCritical, problem, map[string]string{"broken_at": strconv.FormatInt(rep.BrokenAt, 10)})
	}
	w.log = rep
	return nil
}

// lostLines adds up what the log says that it left out.
func (w *work) lostLines(ctx context.Context) (lost int64, err error) {
	err = w.recent(ctx, countersign.EventsSuppressed, lossWindow, func(e *countersign.Event) {
		n, _ := strconv.ParseInt(e.Data["count"], 10, 64) // a line that was changed is the chain's matter
		lost += n
	})
	return lost, err
}

// restored reports each restore that was accepted: what the log lost by it is said there.
func (w *work) restored(ctx context.Context, found func(reason string, severity countersign.Severity, summary string, evidence map[string]string)) error {
	return w.recent(ctx, countersign.DatabaseRestored, lossWindow, func(e *countersign.Event) {
		evidence := maps.Clone(e.Data)
		if evidence == nil {
			evidence = map[string]string{}
		}
		evidence["at"], evidence["actor"] = stamp(e.At), string(e.Actor)
		found("DATABASE_RESTORED", countersign.SeverityCritical, e.Reason, evidence)
	})
}

// recent visits the events of a type of the last time, the newest first.
func (w *work) recent(ctx context.Context, kind countersign.EventType, window time.Duration, visit func(*countersign.Event)) error {
	since := w.now.Add(-window)
	all := store.Pages(func(after int64) ([]countersign.Event, int64, error) {
		return w.Events.List(ctx, event.Filter{Type: kind, Newest: true, After: after})
	})
	for e, err := range all {
		if err != nil {
			return fmt.Errorf("read the events %s: %w", kind, err)
		}
		if e.At.Before(since) {
			return nil
		}
		visit(&e)
	}
	return nil
}

// lostEnd compares the log with what the last audit saw of it. The chain itself
// cannot tell that lines were cut off its end.
func (w *work) lostEnd(ctx context.Context, rep event.Report) (problem string, err error) {
	var events int64
	var head string
	err = w.DB.QueryRow(ctx, `SELECT log_events, log_head FROM audit_run WHERE log_events > 0 ORDER BY id DESC LIMIT 1`).Scan(&events, &head)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read what the last audit saw of the log: %w", err)
	}
	if rep.Events < events {
		return fmt.Sprintf("the log has %d sealed events, the last audit saw %d: its end was cut off", rep.Events, events), nil
	}
	hash, err := event.HashAt(ctx, w.DB, events)
	if err != nil {
		return "", err
	}
	if hex.EncodeToString(hash) != head {
		return fmt.Sprintf("event %d is not the one that the last audit saw: the log was rewritten", events), nil
	}
	return "", nil
}
