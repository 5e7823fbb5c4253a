package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	// pgConns is the pool of one node, all of it kept open: a connection costs
	// PostgreSQL a process, and 4 nodes of 20 fit its default of 100.
	pgConns = 20
	// pgIdle is when an unused connection is given back; it also follows a failover.
	pgIdle = 10 * time.Minute
	// pgConnect bounds one attempt to connect, unless the URL has connect_timeout.
	pgConnect = 5 * time.Second
	// acquireWait is how long a write waits for a connection of a busy pool, BEGIN
	// included.
	acquireWait = 5 * time.Second
	// commitWait bounds the wait for the answer of COMMIT: a synchronous standby that
	// is slower holds up more than this node. Then the outcome is found out.
	commitWait = 10 * time.Second
	// rollbackWait bounds ROLLBACK, on which nothing depends.
	rollbackWait = time.Second
	// attempts bounds how often a transaction runs that PostgreSQL asks to repeat;
	// backoff doubles from its first value, with jitter, so that rivals part.
	attempts = 6
	backoff  = 5 * time.Millisecond
	// pgOldest is the oldest server that the tests run on, as server_version_num.
	pgOldest = 150000
)

type postgres struct {
	opts   Options
	config *pgx.ConnConfig
	pool   *sql.DB

	open     context.Context // ends when the database is closed
	unknown  chan struct{}   // one slot for each search
	searches sync.WaitGroup

	lostSince atomic.Pointer[time.Time] // nil while the database is reachable
}

func openPostgres(ctx context.Context, o Options) (*DB, error) {
	config, err := pgConfig(o.URL)
	if err != nil {
		return nil, err
	}
	pool := stdlib.OpenDB(*config)
	pool.SetMaxOpenConns(pgConns)
	pool.SetMaxIdleConns(pgConns)
	pool.SetConnMaxIdleTime(pgIdle)
	if err := checkServer(ctx, pool); err != nil {
		return nil, errors.Join(dialect{}.wrap(err), pool.Close())
	}
	p := &postgres{opts: o, config: config, pool: pool, unknown: make(chan struct{}, maxUnknown)}
	var end context.CancelFunc
	p.open, end = context.WithCancel(context.WithoutCancel(ctx))
	shut := func() error {
		end()
		p.searches.Wait()
		return pool.Close()
	}
	return &DB{opts: o, dialect: postgresDialect(), reads: pool, write: p.write, listen: p.listen, lost: p.lost, close: shut}, nil
}

func pgConfig(url string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		// pgx's own error masks the password.
		return nil, countersign.Errorf(countersign.BadRequest, "the PostgreSQL URL is malformed").
			WithNext(`write "postgres://user@host:5432/name"`).WithCause(err)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = pgConnect
	}
	// A node that hangs in a transaction must not hold its locks for good, and no
	// statement here is meant to run for minutes.
	for name, value := range map[string]string{
		"application_name":                    "countersign",
		"idle_in_transaction_session_timeout": "60s",
		"statement_timeout":                   "120s",
	} {
		if config.RuntimeParams[name] == "" {
			config.RuntimeParams[name] = value
		}
	}
	// Record, then answer: not for the URL to weaken.
	if v := config.RuntimeParams["synchronous_commit"]; v != "remote_apply" {
		config.RuntimeParams["synchronous_commit"] = "on"
	}
	return config, nil
}

func checkServer(ctx context.Context, pool *sql.DB) error {
	var text string
	if err := pool.QueryRowContext(ctx, `SHOW server_version_num`).Scan(&text); err != nil {
		return err
	}
	if v, err := strconv.Atoi(text); err != nil || v < pgOldest {
		return countersign.Errorf(countersign.Conflict, "PostgreSQL %s is too old", text).WithNext("use PostgreSQL 15 or later")
	}
	return nil
}

// write runs fn in a transaction, again when PostgreSQL asks for it.
func (p *postgres) write(ctx context.Context, fn writeFunc) error {
	for i := 1; ; i++ {
		again, err := p.attempt(ctx, fn)
		if !again || i == attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(backoff<<i/2 + rand.N(backoff<<i)): //nolint:gosec // jitter is no secret
		}
	}
}

// attempt is one transaction; again means that nothing was recorded and that
// another one may do better.
func (p *postgres) attempt(ctx context.Context, fn writeFunc) (again bool, err error) {
	conn, xid, again, err := p.begin(ctx)
	if err != nil {
		return again, err
	}
	defer func() { _ = conn.Close() }() // returns it to the pool, which discards it inside of a transaction
	tx := &Tx{run: p.opts.observe(conn, true), dialect: postgresDialect()}
	if err := tx.call(ctx, p.opts, fn); err != nil {
		rollback(ctx, conn)
		return isRetryable(err), err
	}
	err = commit(ctx, conn)
	if open, ok := errors.AsType[*unconfirmed](err); ok {
		again, err = p.findOut(ctx, tx, xid, open.cause)
	}
	if err != nil {
		return again || isRetryable(err), err
	}
	tx.committed()
	return false, nil
}

// begin starts a transaction on a connection of the pool and returns its id. Both
// are one round trip.
func (p *postgres) begin(ctx context.Context) (conn *sql.Conn, xid string, again bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, acquireWait)
	defer cancel()
	conn, err = p.pool.Conn(waiting)
	if err != nil {
		if ctx.Err() == nil && waiting.Err() != nil {
			err = unavailable("no database connection came free in time", err)
		}
		return nil, "", false, err
	}
	err = onConn(conn, func(c *pgconn.PgConn) error {
		results, err := c.Exec(waiting, beginQuery).ReadAll()
		if err != nil {
			return err
		}
		xid = string(results[len(results)-1].Rows[0][0])
		return nil
	})
	if err != nil {
		_ = conn.Close()
		// The server may have closed this pooled connection: the next may be good. One
		// that did not answer in time has used the time up.
		return nil, "", waiting.Err() == nil && isDown(err), err
	}
	return conn, xid, false, nil
}

// beginQuery has the transaction's id assigned at once, so that its outcome can be
// asked for when the answer of COMMIT is lost.
const beginQuery = `BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_current_xact_id()`

// rollback ends the transaction. Where it fails the pool discards the connection,
// and the server rolls back.
func rollback(ctx context.Context, conn *sql.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackWait)
	defer cancel()
	_ = onConn(conn, func(c *pgconn.PgConn) error { return c.Exec(ctx, "ROLLBACK").Close() })
}

// commit commits, and waits for the answer at most commitWait and until the
// deadline of ctx. A canceled ctx does not end the wait. The error is unconfirmed
// unless the server has refused, or was not asked.
func commit(ctx context.Context, conn *sql.Conn) error {
	waiting, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitWait)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		waiting, cancel = context.WithDeadline(waiting, deadline)
		defer cancel()
	}
	var tag string
	sent := false
	err := onConn(conn, func(c *pgconn.PgConn) error {
		if c.IsClosed() {
			return net.ErrClosed
		}
		if err := waiting.Err(); err != nil {
			return err
		}
		sent = true
		results, err := c.Exec(waiting, "COMMIT").ReadAll()
		if len(results) > 0 {
			tag = results[0].CommandTag.String()
		}
		return err
	})
	switch {
	case err == nil && tag == "ROLLBACK":
		return fmt.Errorf("couldn't commit: %w", pgx.ErrTxCommitRollback)
	case err == nil:
		return nil
	case !sent || refusedCommit(err):
		return fmt.Errorf("couldn't commit: %w", err)
	}
	return &unconfirmed{err}
}

// refusedCommit reports whether the server answered COMMIT with an error after which
// the transaction is rolled back. A session that ends (FATAL, PANIC) may have
// committed, and so may one that is asked to stop (class 57) while it waits for a
// standby. pgconn.SafeToRetry is of no use here: it is true of a connection that
// was found closed after COMMIT was sent.
func refusedCommit(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.SeverityUnlocalized == "ERROR" && !strings.HasPrefix(e.Code, "57")
}

// onConn runs f on PostgreSQL's own connection below conn.
func onConn(conn *sql.Conn, f func(*pgconn.PgConn) error) error {
	return conn.Raw(func(c any) error {
		pc, ok := c.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("unknown database connection %T", c)
		}
		return f(pc.Conn().PgConn())
	})
}

func isBrokenPipe(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
