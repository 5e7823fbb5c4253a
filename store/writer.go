package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	countersign "github.com/countersign-iot/countersign"
)

const (
	// batchMax bounds the writes of one commit. At 64 the commit costs less than
	// the statements (PERFORMANCE: 67 us a row against 210); more only adds delay.
	batchMax = 64
	// queueMax bounds the writes that wait: about a tenth of a second of work.
	queueMax = 1024
	// queueWait is how long a write waits for a place in a full queue before its
	// caller is asked to come back.
	queueWait = 5 * time.Second
)

var errClosed = errors.New("the database is closed")

// writer owns the one SQLite connection that writes. Its goroutine takes the
// writes that wait and commits them together, so that they share one fsync.
type writer struct {
	opts  Options
	conn  *sql.Conn
	run   *cached
	queue chan *pending
	// reserve is for writes with an emergency context; nil: there is none.
	reserve *reserve

	quit     chan struct{} // closed by close
	stopped  chan struct{} // closed when the goroutine has ended
	quitOnce sync.Once
}

// pending is one Write that waits.
type pending struct {
	ctx  context.Context
	fn   writeFunc
	tx   *Tx
	err  error
	done chan error // one slot, so that the writer never waits for a caller
	// taken decides the race between the writer that begins and the caller that
	// stops waiting: the first to swap it wins.
	taken atomic.Bool
}

func startWriter(ctx context.Context, db *sql.DB, o Options, spare *reserve) (*writer, error) {
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	w := &writer{
		opts: o, conn: conn, run: newCached(conn), queue: make(chan *pending, queueMax),
		quit: make(chan struct{}), stopped: make(chan struct{}), reserve: spare,
	}
	w.measure()
	go w.loop()
	return w, nil
}

func (w *writer) close() error {
	w.quitOnce.Do(func() { close(w.quit) })
	<-w.stopped
	w.run.close()
	return w.conn.Close()
}

// write queues fn and waits for its commit.
func (w *writer) write(ctx context.Context, fn writeFunc) error {
	if w.reserve != nil && !isEmergency(ctx) && w.reserve.closed() {
		return full(errReserved)
	}
	p := &pending{ctx: ctx, fn: fn, done: make(chan error, 1)}
	if err := w.enqueue(p); err != nil {
		return err
	}
	var err error
	select {
	case err = <-p.done:
	case <-ctx.Done():
		if p.taken.CompareAndSwap(false, true) {
			return ctx.Err()
		}
		err = w.outcome(p)
	case <-w.stopped:
		err = w.outcome(p)
	}
	if err != nil {
		return err
	}
	p.tx.committed()
	return nil
}

// outcome waits for a write that has begun.
func (w *writer) outcome(p *pending) error {
	select {
	case err := <-p.done:
		return err
	case <-w.stopped:
	}
	select { // both may be ready: the answer counts
	case err := <-p.done:
		return err
	default:
		return errClosed
	}
}

func (w *writer) enqueue(p *pending) error {
	select {
	case <-w.quit:
		return errClosed
	case w.queue <- p:
		return nil
	default:
	}
	full := time.NewTimer(queueWait)
	defer full.Stop()
	select {
	case w.queue <- p:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	case <-w.quit:
		return errClosed
	case <-full.C:
		return countersign.Errorf(countersign.Unavailable, "too many writes are waiting for the database").WithRetry(retryAfter)
	}
}

// loop commits batch after batch until close; what waits then is refused. A
// write that ends the goroutine (runtime.Goexit) closes the database rather than
// leaving callers waiting.
func (w *writer) loop() {
	defer close(w.stopped)
	for {
		select {
		case p := <-w.queue:
			// Goroutines that can run now and are about to write join this commit.
			// Where there is none, there is no wait.
			runtime.Gosched()
			w.commit(w.gather(p))
		case <-w.quit:
			return
		}
	}
}

// gather takes what waits already, without waiting for more: while one batch
// commits, the next one fills.
func (w *writer) gather(first *pending) []*pending {
	batch := make([]*pending, 0, batchMax)
	for p := first; ; {
		if p.taken.CompareAndSwap(false, true) {
			batch = append(batch, p)
		}
		if len(batch) == batchMax {
			return batch
		}
		select {
		case p = <-w.queue:
		default:
			return batch
		}
	}
}

// commit runs a batch in one transaction and answers each caller. When a write
// broke the whole transaction (SQLite rolls all of it back when the disk is
// full), or the commit found no space, each one gets a transaction of its own, so
// that it hurts no other and an emergency gets the reserve.
func (w *writer) commit(batch []*pending) {
	if len(batch) == 0 {
		return
	}
	err := w.transact(batch)
	if len(batch) > 1 && (errors.Is(err, errBroken) || w.noSpace(err)) {
		for _, p := range batch {
			w.commit([]*pending{p})
		}
		return
	}
	if one := batch[0]; len(batch) == 1 && isEmergency(one.ctx) && w.noSpace(errors.Join(one.err, err)) {
		err = w.rescue(one, err)
	}
	for _, p := range batch {
		if p.err == nil {
			p.err = err
		}
		p.done <- p.err
	}
}

// errBroken means that SQLite ended the transaction by itself.
var errBroken = errors.New("the transaction was rolled back by the database")

// transact leaves each write's own error in pending.err and returns what befell
// all of them.
func (w *writer) transact(batch []*pending) (err error) {
	if err := w.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	committed := false
	defer func() {
		if !committed {
			_ = w.exec("ROLLBACK") // fails when SQLite has done it already
		}
	}()
	for _, p := range batch {
		if err := w.runOne(p); err != nil {
			return err
		}
	}
	if err := w.exec("COMMIT"); err != nil {
		return fmt.Errorf("couldn't commit: %w", err)
	}
	committed = true
	return nil
}

// runOne runs one write inside of its savepoint. Its own failure is p.err; the
// error returned is that of the whole transaction.
func (w *writer) runOne(p *pending) error {
	if err := w.exec("SAVEPOINT one"); err != nil {
		return err
	}
	p.tx = &Tx{run: w.opts.observe(w.run, true), dialect: sqliteDialect()}
	p.err = p.tx.call(p.ctx, w.opts, p.fn)
	if p.err != nil {
		if err := w.exec("ROLLBACK TO one"); err != nil {
			return fmt.Errorf("%w: %w", errBroken, p.err)
		}
	}
	if err := w.exec("RELEASE one"); err != nil {
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	return nil
}

// exec has no caller's context: these statements are for all callers.
func (w *writer) exec(q string) error {
	_, err := w.run.ExecContext(context.Background(), q)
	return err
}

// rescue runs an emergency write again that found no space, with as much of the
// reserve as it needs.
func (w *writer) rescue(p *pending, err error) error {
	if w.reserve == nil {
		return err
	}
	if err := w.bound(w.opts.MaxBytes + w.reserve.size); err != nil {
		return err
	}
	for step := int64(reserveStep); ; step *= 2 {
		p.err = nil
		if err = w.transact([]*pending{p}); !w.noSpace(errors.Join(p.err, err)) {
			break
		}
		if !w.reserve.release(step) {
			break
		}
	}
	if lowered := w.bound(w.opts.MaxBytes); lowered != nil {
		w.opts.Log.Error("bound of the database not set again", "error", lowered)
	}
	w.measure()
	return err
}

// bound sets the number of octets that the database may have, where it has a bound. A
// database that is larger stays as it is, and grows no more.
func (w *writer) bound(octets int64) error {
	if w.opts.MaxBytes == 0 {
		return nil
	}
	return w.exec(fmt.Sprintf("PRAGMA max_page_count(%d)", max(1, octets/pageSize)))
}

// measure records by how much the database exceeds its bound, and reports the use of the reserve.
func (w *writer) measure() {
	if w.reserve == nil {
		return
	}
	var pages int64
	if w.opts.MaxBytes > 0 {
		if err := w.run.QueryRowContext(context.Background(), "PRAGMA page_count").Scan(&pages); err != nil {
			w.opts.Log.Error("size of the database not read", "error", err)
			return
		}
	}
	w.reserve.exceeds(pages*pageSize - w.opts.MaxBytes)
}

// noSpace reports whether a write failed for want of space. SQLite has a code
// for the database and its log; of the log's index it reports that it could not be extended.
func (w *writer) noSpace(err error) bool {
	return isFull(err) || sqliteCode(err) == sqlite3.SQLITE_IOERR_SHMSIZE
}
