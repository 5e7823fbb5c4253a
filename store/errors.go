package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

// ErrExists means that a row with that unique key is there already.
var ErrExists = errors.New("it exists already")

// ErrEmpty means that a database has none of our tables: nothing was ever founded in it.
var ErrEmpty = errors.New("the database is empty")

// retryAfter is how long a caller is asked to wait when the database cannot record:
// long enough for a failover or a deleted log file, short enough for a person.
const retryAfter = 5 * time.Second

// Wrap puts an error of the database into our terms: [ErrExists], or
// countersign.Unavailable when the database cannot serve now (disk full,
// unreachable, out of time), with the cause kept. Everything else, sql.ErrNoRows
// too, passes untouched. Only errors of rows.Err and rows.Scan need it; the
// methods of DB and Tx have done it already.
func Wrap(err error) error { return dialect{}.wrap(err) }

// wrap works for both dialects at once: the drivers have error types of their own.
func (dialect) wrap(err error) error {
	if err == nil || errors.Is(err, ErrExists) || errors.Is(err, context.Canceled) {
		return err
	}
	if _, ok := errors.AsType[*countersign.Error](err); ok {
		return err
	}
	switch {
	case isUnique(err):
		return &existsError{err}
	case Unconfirmed(err):
		return unavailable("the database did not confirm the write; it may or may not be recorded", err)
	case isFull(err):
		return full(err)
	case errors.Is(err, context.DeadlineExceeded):
		return unavailable("the database did not answer in time", err)
	case isDown(err) || errors.Is(err, errClosed):
		what, next := downBecause(err)
		return unavailable("the database cannot be used now: "+what, err).WithNext(next)
	}
	return err
}

// Full reports that a write has no space: what takes some is refused, what frees some may pass.
func Full(err error) bool { return isFull(err) || errors.Is(err, errReserved) }

// full is the refusal of a write that has no space.
func full(cause error) *countersign.Error {
	return unavailable("the database has no space left; nothing was recorded", cause).
		WithNext("free space on its disk, or raise its bound")
}

func unavailable(message string, cause error) *countersign.Error {
	return countersign.Errorf(countersign.Unavailable, "%s", message).WithRetry(retryAfter).WithCause(cause)
}

// existsError is ErrExists and its cause, which names the key.
type existsError struct{ cause error }

func (e *existsError) Error() string   { return "it exists already: " + e.cause.Error() }
func (e *existsError) Unwrap() []error { return []error{ErrExists, e.cause} }

// unconfirmed marks an error of COMMIT after which the outcome is not known.
type unconfirmed struct{ cause error }

func (e *unconfirmed) Error() string { return "couldn't confirm the commit: " + e.cause.Error() }
func (e *unconfirmed) Unwrap() error { return e.cause }

// Unconfirmed reports whether an error of [DB.Write] leaves open whether the write is
// on record: the answer of COMMIT was lost, and the outcome could not be read back.
func Unconfirmed(err error) bool {
	_, ok := errors.AsType[*unconfirmed](err)
	return ok
}

// failedRow is a row whose Scan returns err; database/sql makes one
// only for a database that cannot be connected to.
func failedRow(ctx context.Context, err error) *sql.Row {
	db := sql.OpenDB(failing{err})
	defer func() { _ = db.Close() }()
	return db.QueryRowContext(context.WithoutCancel(ctx), "")
}

type failing struct{ err error }

func (f failing) Connect(context.Context) (driver.Conn, error) { return nil, f.err }

func (f failing) Driver() driver.Driver { return nil }
