// Package store is the one database of the authority: a *DB over database/sql
// that speaks one SQL text to SQLite (embedded, the default) and to PostgreSQL
// 15 or later (more than one node). It opens, locks and migrates the database,
// allows reads to all and writes through [DB.Write], which answers only
// after the commit is durable. It knows no table, no protocol and no rule;
// keepers bring their own SQL with $1 parameters and times as [Micros].
//
// What the two databases do differently is in dialect.go.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// DB is an open database. Its methods may be called from any goroutine.
type DB struct {
	opts    Options
	dialect dialect
	reads   runner
	write   func(ctx context.Context, fn writeFunc) error
	listen  func(ctx context.Context, onNotify func(string), onState func(bool)) error
	lost    func() (time.Time, bool)
	close   func() error
	reserve *reserve // of SQLite; nil: none
}

// Close waits for the writes that have begun, refuses those that wait, and closes
// the database.
func (db *DB) Close() error { return db.close() }

// Postgres reports whether the database is PostgreSQL, which other nodes may share.
func (db *DB) Postgres() bool { return db.dialect.postgres }

// Clock returns the time by the clock that all nodes on the database share. SQLite
// has one node: there it is the caller's own time.
func (db *DB) Clock(ctx context.Context, own time.Time) (time.Time, error) {
	if db.dialect.clock == "" {
		return own, nil
	}
	var at int64
	if err := db.QueryRow(ctx, db.dialect.clock).Scan(&at); err != nil {
		return own, fmt.Errorf("read the database's clock: %w", err)
	}
	return Time(at), nil
}

// Query reads rows outside of a transaction; what it sees is committed. Errors
// that come later, from rows.Err, are the driver's: pass them to [Wrap].
func (db *DB) Query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	if inside(ctx) {
		return nil, errInside
	}
	if err := db.reachable(); err != nil {
		return nil, err
	}
	rows, err := db.reads.QueryContext(ctx, q, args...)
	return rows, db.dialect.wrap(err)
}

// QueryRow reads one row outside of a transaction. Scan returns sql.ErrNoRows when
// there is none.
func (db *DB) QueryRow(ctx context.Context, q string, args ...any) *sql.Row {
	if inside(ctx) {
		return failedRow(ctx, errInside)
	}
	if err := db.reachable(); err != nil {
		return failedRow(ctx, err)
	}
	return db.dialect.wrapRow(ctx, db.reads.QueryRowContext(ctx, q, args...))
}

// Write runs fn in a transaction and returns nil once it is durable. When fn
// returns an error or panics nothing of it is kept, and Write returns that error.
//
// SQLite: one goroutine runs the waiting Writes one after the other and commits
// them together; the failure of one does not affect the others. PostgreSQL: a
// READ COMMITTED transaction of its own. On both, fn may run more than once
// (a serialization failure, another one that broke the common transaction), so it
// must have no effect outside of tx; use [Tx.AfterCommit]. fn must be short, must
// not call db (it gets an error, given the ctx it was called with) and must not
// call runtime.Goexit, as t.FailNow does.
//
// A ctx that ends before fn ran ends the wait. Once fn ran, Write waits for the
// commit, so that a canceled caller is never answered that a recorded write was not; a
// deadline bounds that wait on PostgreSQL. When the answer of COMMIT is lost, Write
// reads back whether the transaction is on record (see [Tx.Proof]) before it returns.
// Unavailable means that nothing was recorded, with one exception, of which
// [Unconfirmed] reports true: the outcome could not be read back in time.
func (db *DB) Write(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	if inside(ctx) {
		return errInside
	}
	if err := db.reachable(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return db.dialect.wrap(err)
	}
	return db.dialect.wrap(db.write(ctx, fn))
}

// Listen calls onNotify with the payload of each committed [Tx.Notify] of any
// node, until ctx ends; then it returns nil. onState is called when the stream comes
// up and goes down; what was notified while it was down is lost, so a listener
// that gets "up" must read the database once. Both are called from this
// goroutine. SQLite has one node: the stream is up and silent.
func (db *DB) Listen(ctx context.Context, onNotify func(payload string), onState func(up bool)) error {
	return db.listen(ctx, onNotify, onState)
}

// Micros is t as the databases keep it: microseconds since 1970 UTC, 0 for the
// zero time.
func Micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// Time is the inverse of [Micros], in UTC.
func Time(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// Reserve returns the state of the reserve.
func (db *DB) Reserve() Reserve {
	if db.reserve == nil {
		return Reserve{}
	}
	return db.reserve.state()
}

// Lost returns since when the database has not been reachable; false while it is.
// Reads and writes are refused meanwhile without being tried. It is known while
// [DB.Listen] runs. SQLite is in this process and is never lost.
func (db *DB) Lost() (since time.Time, lost bool) { return db.lost() }

// reachable is the error of a read or a write while the database is lost.
func (db *DB) reachable() error {
	if _, lost := db.lost(); lost {
		return unavailable("the database cannot be reached now", errLost)
	}
	return nil
}

var errLost = errors.New("the database is lost")
