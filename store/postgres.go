package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
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
	// acquireWait is how long a write waits for a connection of a busy pool.
	acquireWait = 5 * time.Second
	// commitWait bounds COMMIT, which no caller's context ends.
	commitWait = 30 * time.Second
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
	p := &postgres{opts: o, config: config, pool: pool}
	return &DB{opts: o, dialect: postgresDialect(), reads: pool, write: p.write, listen: p.listen, close: pool.Close}, nil
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
	conn, err := p.acquire(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }() // gives it back
	// The transaction outlives ctx from COMMIT on: see DB.Write.
	txCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	sqlTx, err := conn.BeginTx(txCtx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return isDown(err), err // the server has closed pooled connections: the next may be good
	}
	tx := &Tx{run: sqlTx, dialect: postgresDialect()}
	if err := tx.call(ctx, p.opts, fn); err != nil {
		_ = sqlTx.Rollback() // on a lost connection the server does it
		return isRetryable(err), err
	}
	defer time.AfterFunc(commitWait, cancel).Stop()
	if err := sqlTx.Commit(); err != nil {
		return isRetryable(err), commitError(err)
	}
	tx.committed()
	return false, nil
}

// commitError parts a COMMIT that the server refused from one whose answer never
// came. A server that is being stopped (class 57) may have committed here while
// it waited for its standby.
func commitError(err error) error {
	code := pgCode(err)
	if code != "" && !strings.HasPrefix(code, "57") || errors.Is(err, pgx.ErrTxCommitRollback) || pgconn.SafeToRetry(err) {
		return fmt.Errorf("couldn't commit: %w", err)
	}
	return &unconfirmed{err}
}

func (p *postgres) acquire(ctx context.Context) (*sql.Conn, error) {
	waiting, cancel := context.WithTimeout(ctx, acquireWait)
	defer cancel()
	conn, err := p.pool.Conn(waiting)
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		return nil, unavailable("no database connection came free in time", err)
	}
	return conn, err
}

func isBrokenPipe(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
