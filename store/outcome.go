package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

const (
	// outcomeWait is how long a Write whose COMMIT got no answer looks for its outcome
	// before it returns that it is unconfirmed: a failover to a standby that is ready
	// takes a few seconds.
	outcomeWait = 5 * time.Second
	// outcomeLeast is how long it looks for a caller who has set a deadline, and whose
	// time COMMIT may have used up.
	outcomeLeast = time.Second
	// outcomeMin and outcomeMax bound the pause between two looks, which doubles.
	outcomeMin = 10 * time.Millisecond
	outcomeMax = time.Second
	// outcomeAsk bounds one look.
	outcomeAsk = 2 * time.Second
	// maxUnknown bounds the transactions whose outcome is looked for after their Write
	// has returned. There are no more than the pool has connections, and those that
	// came after them while the database did not answer.
	maxUnknown = 1024
)

// errUndecided means that the outcome of a transaction is not known yet.
var errUndecided = errors.New("the transaction is still in progress")

// findOut finds out whether the transaction xid, whose COMMIT got no answer, is on
// record: nil if it is. again means that it is not, and that another one may do
// better. cause is the error of COMMIT. Where the outcome cannot be found out within
// outcomeWait the error is unconfirmed, and the search goes on until the database is
// closed: what waits for the commit (AfterCommit) then runs late.
func (p *postgres) findOut(ctx context.Context, tx *Tx, xid string, cause error) (again bool, err error) {
	wait := outcomeWait
	if _, ok := ctx.Deadline(); ok {
		wait = outcomeLeast
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
	defer cancel()
	committed, err := p.search(ctx, tx, xid)
	switch {
	case errors.Is(err, errUnproved):
		return false, &unconfirmed{errors.Join(cause, err)}
	case err != nil:
		p.searchOn(ctx, tx, xid)
		return false, &unconfirmed{errors.Join(cause, err)}
	case !committed:
		return true, unavailable("the database lost the write; nothing was recorded", cause)
	}
	p.opts.Log.InfoContext(ctx, "commit found on record after its answer was lost", "transaction", xid, "error", cause)
	return false, nil
}

// searchOn looks for the outcome behind the caller's back.
func (p *postgres) searchOn(ctx context.Context, tx *Tx, xid string) {
	select {
	case p.unknown <- struct{}{}:
	default:
		p.opts.Log.ErrorContext(ctx, "outcome of a commit stays unknown: too many are", "transaction", xid)
		return
	}
	p.searches.Go(func() {
		defer func() { <-p.unknown }()
		committed, err := p.search(p.open, tx, xid)
		if err != nil {
			p.opts.Log.ErrorContext(ctx, "outcome of a commit stays unknown", "transaction", xid, "error", err)
			return
		}
		p.opts.Log.WarnContext(ctx, "outcome of a commit found out late", "transaction", xid, "committed", committed)
		if committed {
			tx.committed()
		}
	})
}

// search asks until the outcome is known or ctx ends.
func (p *postgres) search(ctx context.Context, tx *Tx, xid string) (committed bool, err error) {
	for pause := outcomeMin; ; pause = min(2*pause, outcomeMax) {
		committed, err = p.outcome(ctx, tx, xid)
		if err == nil || errors.Is(err, errUnproved) {
			return committed, err
		}
		select {
		case <-ctx.Done():
			return false, err
		case <-time.After(pause):
		}
	}
}

// errUnproved means that the record does not show whether a transaction is on it.
var errUnproved = errors.New("the transaction has left nothing by which it can be found")

// outcomeQuery asks how a transaction ended. A standby that is not promoted yet does
// not know. While the session that commits exists the answer is "in progress", so that
// the next one is final.
const outcomeQuery = `SELECT CASE WHEN pg_is_in_recovery() THEN 'in progress' ELSE pg_xact_status($1::text::xid8) END`

// outcome asks the server once.
func (p *postgres) outcome(ctx context.Context, tx *Tx, xid string) (committed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, outcomeAsk)
	defer cancel()
	var status sql.NullString
	err = p.pool.QueryRowContext(ctx, outcomeQuery, xid).Scan(&status)
	switch {
	case pgCode(err) == pgInvalidParameter: // an id of the future: the server has been replaced by one that never saw it
		return false, nil
	case err != nil:
		return false, err
	case status.String == "aborted":
		return false, nil
	case status.String == "in progress":
		return false, errUndecided
	case tx.proof == nil:
		return false, errUnproved
	}
	// Committed is not enough: a server that crashed, or its standby, may have given
	// the id of a transaction that it lost to another one.
	var one int
	err = p.pool.QueryRowContext(ctx, tx.proof.query, tx.proof.args...).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}
