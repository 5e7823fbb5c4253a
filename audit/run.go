package audit

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// writeBatch bounds the findings of one transaction.
const writeBatch = 500

// stage is a set of checks that look at the same rows, which are read once.
type stage struct {
	checks []string
	run    func(ctx context.Context, w *work) error
}

// stages returns the checks by the rows that they look at.
func stages() []stage {
	return []stage{
		{[]string{CAExpiring, CARevoked, CAKeyQuality, CRLStale}, lookAtAuthorities},
		{[]string{DeviceExpiring, DeviceAge, DeviceRevoked, IntermediateRevoked, DeviceKeyQuality, KeyReused}, lookAtCertificates},
		{[]string{NeverConnected, Inactive, Orphaned, Offboarding}, lookAtDevices},
		{[]string{ClaimUnbounded, CredentialLeaked, SecretAge}, lookAtCredentials},
		{[]string{WeakAuthenticated}, lookAtFleets},
		{[]string{PolicyPermissive, PolicyOdd}, lookAtPolicies},
		{[]string{OperatorToken}, lookAtOperatorTokens},
		{[]string{CertificateShared, SecretShared, ConflictingClients}, lookAtShared},
		{[]string{LoggingDisabled}, lookAtLog},
	}
}

// carryOut runs the checks of a run that is on record, to its end, whatever that is.
func (a *Auditor) carryOut(ctx context.Context, stop context.CancelCauseFunc, run Run) {
	w := &work{Auditor: a, run: run, now: run.StartedAt, checks: map[string]*tally{}}
	for _, c := range run.Checks {
		w.checks[c.Name] = &tally{Result: c}
	}
	beating, stopBeating := context.WithCancel(ctx)
	var heart sync.WaitGroup
	heart.Go(func() { w.beat(beating, stop) })
	err := w.prepare(ctx)
	if err == nil {
		for _, s := range stages() {
			w.stage(ctx, s)
		}
	}
	stopBeating()
	heart.Wait()
	// The end is written although the server is being stopped.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	state, reason := w.outcome(last, context.Cause(ctx), err)
	if err := w.end(last, state, reason, a.Handle); err != nil {
		a.Log.ErrorContext(last, "audit not handed on", "run", run.ID, "error", err)
		if err := w.end(last, Failed, "what it found could not be handed on", nil); err != nil {
			a.Log.ErrorContext(last, "end of audit not recorded", "run", run.ID, "error", err)
			return
		}
	}
	if err := a.prune(last); err != nil {
		a.Log.WarnContext(last, "old audits not removed", "error", err)
	}
}

// prepare reads what all checks need.
func (w *work) prepare(ctx context.Context) (err error) {
	if w.suppressions, err = w.activeSuppressions(ctx); err != nil {
		return err
	}
	fleets, err := w.Registry.Fleets(ctx)
	if err != nil {
		return err
	}
	w.fleets, w.expiring = map[string]countersign.Rules{}, map[string]countersign.Span{}
	for _, f := range fleets {
		w.fleets[f.Name] = f.Rules
		w.expiring[f.Issuer] = max(w.expiring[f.Issuer], f.Rules.Audit.Expiring)
	}
	return nil
}

// stage runs those checks of s that were asked for and writes what they found.
func (w *work) stage(ctx context.Context, s stage) {
	var names []string
	for _, name := range s.checks {
		if w.wants(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return
	}
	if ctx.Err() == nil {
		w.set(names, func(t *tally) { t.Status = CheckRunning })
		err := s.run(ctx, w)
		if err == nil {
			err = w.writeFindings(ctx, names)
		}
		if err == nil {
			w.set(names, (*tally).conclude)
			return
		}
		if ctx.Err() == nil {
			w.Log.ErrorContext(ctx, "audit checks failed", "checks", names, "error", err)
			why := countersign.Public(err).Message
			w.set(names, func(t *tally) { t.Status, t.Error = CheckFailed, why })
			return
		}
	}
	w.set(names, func(t *tally) { t.Status = CheckCanceled })
}

func (t *tally) conclude() {
	t.Status = Compliant
	if t.NonCompliant > 0 {
		t.Status = NonCompliant
	}
}

func (w *work) writeFindings(ctx context.Context, names []string) error {
	for _, name := range names {
		w.mu.Lock()
		found := w.checks[name].findings
		w.checks[name].findings = nil
		w.mu.Unlock()
		for batch := range slices.Chunk(found, writeBatch) {
			err := w.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
				for i := range batch {
					if err := insertFinding(ctx, tx, &batch[i]); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("record findings: %w", err)
			}
		}
	}
	return nil
}

func insertFinding(ctx context.Context, tx *store.Tx, f *Finding) error {
	evidence, err := json.Marshal(f.Evidence)
	if err != nil {
		return fmt.Errorf("encode evidence: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO audit_finding (id, run, name, reason, severity, subject, device, fleet, issuer, serial, summary, evidence, suppressed, at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		f.ID, f.Run, f.Check, f.Reason, string(f.Severity), f.Subject, f.Device, f.Fleet, f.Cert.Issuer, string(f.Cert.Serial),
		f.Summary, string(evidence), f.Suppressed, store.Micros(f.At))
	return err
}

// beat records from time to time that the run is alive and how far it is, and stops it if
// it was canceled or has ended on record.
func (w *work) beat(ctx context.Context, stop context.CancelCauseFunc) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var canceled bool
		var state State
		err := w.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
			err := tx.QueryRow(ctx, `UPDATE audit_run SET beat_at = $2 WHERE id = $1 RETURNING canceled, state`, w.run.ID, store.Micros(w.Now())).Scan(&canceled, &state)
			if err != nil || state != InProgress {
				return err
			}
			return w.writeResults(ctx, tx)
		})
		switch {
		case err != nil && ctx.Err() == nil:
			w.Log.WarnContext(ctx, "progress of audit not recorded", "run", w.run.ID, "error", err)
		case err == nil && state != InProgress:
			stop(errLost)
		case err == nil && canceled:
			stop(errCanceled)
		}
	}
}

func (w *work) writeResults(ctx context.Context, tx *store.Tx) error {
	w.mu.Lock()
	list := make([]Result, 0, len(w.checks))
	for _, t := range w.checks {
		list = append(list, t.Result)
	}
	w.mu.Unlock()
	slices.SortFunc(list, func(a, b Result) int { return cmp.Compare(a.Name, b.Name) })
	for _, r := range list {
		_, err := tx.Exec(ctx, `UPDATE audit_check SET status = $3, severity = $4, looked_at = $5, non_compliant = $6, suppressed = $7, kept = $8, error = $9
			WHERE run = $1 AND name = $2`,
			w.run.ID, r.Name, string(r.Status), string(r.Severity), r.Looked, r.NonCompliant, r.Suppressed, r.Kept, r.Error)
		if err != nil {
			return fmt.Errorf("record the results of a check: %w", err)
		}
	}
	return nil
}

// outcome returns how the run ended. ended is why its context did, nil if it did not;
// failed is what kept it from looking at anything.
func (w *work) outcome(ctx context.Context, ended, failed error) (State, string) {
	every := slices.Collect(maps.Keys(w.checks))
	if ended != nil {
		w.set(every, func(t *tally) {
			if t.Status == Waiting || t.Status == CheckRunning {
				t.Status = CheckCanceled
			}
		})
		if errors.Is(ended, errCanceled) {
			return Canceled, errCanceled.Error()
		}
		return Failed, errStopping.Error()
	}
	if failed != nil {
		reason := countersign.Public(failed).Message
		w.Log.ErrorContext(ctx, "audit failed", "run", w.run.ID, "error", failed)
		w.set(every, func(t *tally) { t.Status, t.Error = CheckFailed, reason })
		return Failed, reason
	}
	if n := w.failures(); n > 0 {
		return Failed, fmt.Sprintf("%d of %d checks failed", n, len(w.checks))
	}
	return Completed, ""
}

// end records how the run ended, appends its event, and hands its findings on, all in one
// transaction.
func (w *work) end(ctx context.Context, state State, reason string, handle func(context.Context, *store.Tx, []countersign.Finding) error) error {
	findings := w.handedOn()
	return w.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		n, err := tx.Exec(ctx, `UPDATE audit_run SET state = $2, reason = $3, ended_at = $4, log_events = $5, log_head = $6 WHERE id = $1 AND state = 'IN_PROGRESS'`,
			w.run.ID, string(state), reason, store.Micros(w.Now()), w.log.Events, hex.EncodeToString(w.log.Head))
		if err != nil {
			return fmt.Errorf("record the end of an audit: %w", err)
		}
		if n == 0 { // another process took it for dead: what it found is not handed on
			return nil
		}
		if err := w.writeResults(ctx, tx); err != nil {
			return err
		}
		if err := w.Events.Append(ctx, tx, w.event(state, reason)); err != nil {
			return err
		}
		if handle == nil || state == Canceled || len(findings) == 0 {
			return nil
		}
		return handle(ctx, tx, findings)
	})
}

func (w *work) failures() (n int) {
	for _, t := range w.checks {
		if t.Status == CheckFailed {
			n++
		}
	}
	return n
}

// event is the end of the run.
func (w *work) event(state State, reason string) countersign.Event {
	var bad, findings, suppressed int64
	worst := countersign.Severity("")
	for _, t := range w.checks {
		if t.Status == NonCompliant {
			bad++
		}
		if t.Severity.Rank() > worst.Rank() {
			worst = t.Severity
		}
		findings += t.NonCompliant
		suppressed += t.Suppressed
	}
	data := map[string]string{
		"run": w.run.ID, "state": string(state), "checks": strconv.Itoa(len(w.checks)), "non_compliant": strconv.FormatInt(bad, 10),
		"findings": strconv.FormatInt(findings, 10), "suppressed": strconv.FormatInt(suppressed, 10),
	}
	if worst != "" {
		data["severity"] = string(worst)
	}
	return countersign.Event{Type: countersign.AuditCompleted, Actor: w.run.StartedBy, Via: w.run.Via, Reason: reason, Data: data}
}

// prune removes the oldest runs, one in a transaction. The newest scheduled one
// stays, since the next is reckoned from it.
func (a *Auditor) prune(ctx context.Context) error {
	for {
		var gone int64
		err := a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
			var id string
			err := tx.QueryRow(ctx, `SELECT id FROM audit_run WHERE state <> 'IN_PROGRESS'
					AND id NOT IN (SELECT id FROM audit_run ORDER BY id DESC LIMIT $1)
					AND id NOT IN (SELECT id FROM audit_run WHERE scheduled ORDER BY id DESC LIMIT 1)
				ORDER BY id LIMIT 1`, maxRuns).Scan(&id)
			if err != nil {
				return err
			}
			for _, q := range []string{
				`DELETE FROM audit_finding WHERE run = $1`, `DELETE FROM audit_check WHERE run = $1`, `DELETE FROM audit_run WHERE id = $1`,
			} {
				if gone, err = tx.Exec(ctx, q, id); err != nil {
					return err
				}
			}
			return nil
		})
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil || gone == 0 {
			return err
		}
	}
}
