package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
)

// notifyMax bounds a payload: PostgreSQL refuses 8000 bytes and more.
const notifyMax = 7999

var (
	errTxEnded = errors.New("the transaction has ended")
	errPanic   = errors.New("panic in a database write")
)

// Tx is the transaction of one [DB.Write]. It belongs to the goroutine that runs
// fn and ends with it. A statement that fails ends it too: later ones are refused
// and Write fails, as PostgreSQL has it, even if fn swallows the error.
type Tx struct {
	run     runner
	dialect dialect
	err     error // first failed statement
	after   []func()
	proof   *proof
}

// proof is a query that returns a row if the transaction is on record.
type proof struct {
	query string
	args  []any
}

// Query reads rows, seeing what this transaction wrote. Close them before the
// next statement: PostgreSQL runs one at a time.
func (tx *Tx) Query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	ctx, err := tx.begin(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := tx.run.QueryContext(ctx, q, args...)
	return rows, tx.note(err)
}

// QueryRow reads one row, or writes one with RETURNING. Scan returns sql.ErrNoRows
// when there is none, which does not end the transaction.
func (tx *Tx) QueryRow(ctx context.Context, q string, args ...any) *sql.Row {
	ctx, err := tx.begin(ctx)
	if err != nil {
		return failedRow(ctx, err)
	}
	row := tx.dialect.wrapRow(ctx, tx.run.QueryRowContext(ctx, q, args...))
	_ = tx.note(row.Err()) // the caller meets it in Scan
	return row
}

// Exec runs a statement and returns how many rows it changed. A unique key that
// is already there is [ErrExists].
func (tx *Tx) Exec(ctx context.Context, q string, args ...any) (int64, error) {
	ctx, err := tx.begin(ctx)
	if err != nil {
		return 0, err
	}
	res, err := tx.run.ExecContext(ctx, q, args...)
	if err != nil {
		return 0, tx.note(err)
	}
	n, err := res.RowsAffected()
	return n, tx.note(err)
}

// Lock holds the named lock until the transaction ends. On SQLite, where writers
// are serial, it is held already.
func (tx *Tx) Lock(ctx context.Context, key string) error {
	if tx.dialect.lock == "" {
		return nil
	}
	_, err := tx.Exec(ctx, tx.dialect.lock, key)
	return err
}

// Notify sends payload, at most 7999 bytes, to every [DB.Listen] of every node
// if the transaction commits. On SQLite there is no other node and it does nothing.
func (tx *Tx) Notify(ctx context.Context, payload string) error {
	if len(payload) > notifyMax {
		return fmt.Errorf("couldn't notify: payload of %d bytes, at most %d fit", len(payload), notifyMax)
	}
	if tx.dialect.notify == "" {
		return nil
	}
	_, err := tx.Exec(ctx, tx.dialect.notify, channel, payload)
	return err
}

// AfterCommit has fn called once the transaction is durable: in the goroutine of
// the caller of Write, in the order of the calls, before Write returns. Where Write
// has returned an [Unconfirmed] error and the transaction turns out to be on record,
// fn is called late, in another goroutine.
func (tx *Tx) AfterCommit(fn func()) { tx.after = append(tx.after, fn) }

// Proof names a query that returns one row if this transaction is on record, and
// none if it is not. It is asked on another connection when the answer of COMMIT was
// lost; a transaction without a proof then stays unconfirmed. Only the first counts.
func (tx *Tx) Proof(q string, args ...any) {
	if tx.proof == nil {
		tx.proof = &proof{q, args}
	}
}

// begin reports whether one more statement may run, and with which context.
func (tx *Tx) begin(ctx context.Context) (context.Context, error) {
	if tx.err != nil {
		return ctx, tx.err
	}
	if err := ctx.Err(); err != nil {
		return ctx, tx.note(err)
	}
	return tx.dialect.statementContext(ctx), nil
}

// note keeps the first failure.
func (tx *Tx) note(err error) error {
	err = tx.dialect.wrap(err)
	if tx.err == nil {
		tx.err = err
	}
	return err
}

// call runs fn. A panic is its error; the stack goes to the log only.
func (tx *Tx) call(ctx context.Context, o Options, fn writeFunc) (err error) {
	defer func() {
		if r := recover(); r != nil {
			o.Log.ErrorContext(ctx, "database write panicked", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
		if err == nil {
			err = tx.err
		}
		tx.err = errTxEnded
	}()
	return fn(context.WithValue(ctx, insideKey{}, true), tx)
}

// committed runs what waited for the commit.
func (tx *Tx) committed() {
	for _, fn := range tx.after {
		fn()
	}
}

type writeFunc = func(ctx context.Context, tx *Tx) error

// Reader reads, outside of a transaction (*DB) or inside of one (*Tx).
type Reader interface {
	Query(ctx context.Context, q string, args ...any) (*sql.Rows, error)
	QueryRow(ctx context.Context, q string, args ...any) *sql.Row
}

// runner is what *sql.DB, *sql.Tx and cached have in common.
type runner interface {
	ExecContext(ctx context.Context, q string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, q string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, q string, args ...any) *sql.Row
}

// errInside stops the deadlock of a Write (SQLite: one writer) or a read
// (PostgreSQL: one more connection of a full pool) that waits for the Write
// around it.
var errInside = errors.New("the database was called inside of a Write: use its Tx")

type insideKey struct{}

func inside(ctx context.Context) bool { return ctx.Value(insideKey{}) != nil }
