package lockout

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// flushEvery is how often the counts are written. A crash loses the counts of this time.
	flushEvery = 2 * time.Second
	// pollEvery is how late a node may learn of another node's block. A guesser who uses
	// several nodes gains no more by that than behind a load balancer.
	pollEvery = 2 * time.Second
	// maxLag bounds how much earlier than its commit a block's time may be: the length of
	// a transaction and the difference of two nodes' clocks, with a large margin.
	maxLag = 5 * time.Minute
	// sweepEvery is how often rows and entries that have ended are deleted.
	sweepEvery = time.Minute
	// flushBatch bounds the counts of one transaction, and so the writes that a flood can
	// cause.
	flushBatch = 500
	// writeTime bounds the wait for the database where no context of a caller does.
	writeTime = 5 * time.Second
	// maxUnwritten bounds the blocks that wait until the database can be written again.
	// Further ones are in force in memory, until this process ends.
	maxUnwritten = 1024
)

// unwritten is a block that is not on record yet, and its event.
type unwritten struct {
	block Block
	event countersign.Event
}

// Load reads the blocks and counts that an earlier process, or another node, recorded.
// Call it before the first listener accepts connections.
func (l *Ledger) Load(ctx context.Context) error {
	now := l.Now()
	if err := l.read(ctx, `WHERE ends_at > $1 ORDER BY manual DESC, ends_at DESC LIMIT $2`, now.Add(-strikeMemory)); err != nil {
		return err
	}
	l.polled = now.Add(-maxLag)
	l.lock()
	defer l.mu.Unlock()
	for w, err := range store.Rows(ctx, l.DB, scanCount, `SELECT kind, name, failures, began_at FROM failure_count WHERE began_at > $1`, store.Micros(now.Add(-nameWindow))) {
		if err != nil {
			return fmt.Errorf("couldn't read the counts of failures: %w", err)
		}
		for _, s := range l.counts() {
			if s.kind == w.kind && w.live(now, s.window) {
				s.put(w.name, w.tally, now)
			}
		}
	}
	return nil
}

// Run writes the counts, reads the blocks of other nodes and deletes what has ended, each
// at its interval, until ctx ends. Then it writes the counts that are left.
func (l *Ledger) Run(ctx context.Context) error {
	flush, poll, sweep := time.NewTicker(flushEvery), time.NewTicker(pollEvery), time.NewTicker(sweepEvery)
	defer flush.Stop()
	defer poll.Stop()
	defer sweep.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			l.flushAll(context.WithoutCancel(ctx))
			return nil
		case <-flush.C:
			_, err = l.flush(ctx)
		case <-poll.C:
			err = l.poll(ctx)
		case <-sweep.C:
			err = l.sweep(ctx)
		}
		if err != nil && ctx.Err() == nil {
			l.Log.ErrorContext(ctx, "the ledger of failures is behind", "error", err)
		}
	}
}

// flushAll writes all counts and blocks that are not on record, when the server stops.
func (l *Ledger) flushAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	for more := true; more; {
		var err error
		if more, err = l.flush(ctx); err != nil {
			l.Log.ErrorContext(ctx, "counts of failures not written", "error", err)
			return
		}
	}
}

// flush writes the blocks that are not on record and one batch of counts. It reports
// whether there may be more counts.
func (l *Ledger) flush(ctx context.Context) (more bool, err error) {
	l.lock()
	late := l.unwritten
	l.unwritten = nil
	var batch []written
	for _, s := range l.counts() {
		batch = append(batch, s.take(flushBatch-len(batch))...)
	}
	l.mu.Unlock()
	for _, u := range late {
		l.record(ctx, u)
	}
	if len(batch) == 0 {
		return false, nil
	}
	err = l.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		for _, w := range batch {
			if err := w.save(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, w := range batch {
			for _, s := range l.counts() {
				if s.kind == w.kind {
					s.mark(w.name)
				}
			}
		}
		return true, fmt.Errorf("couldn't write the counts of failures: %w", err)
	}
	return len(batch) == flushBatch, nil
}

func (w *written) save(ctx context.Context, tx *store.Tx) error {
	if w.failures == 0 {
		_, err := tx.Exec(ctx, `DELETE FROM failure_count WHERE kind = $1 AND name = $2`, w.kind, w.name)
		return err
	}
	_, err := tx.Exec(ctx, `INSERT INTO failure_count (kind, name, failures, began_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (kind, name) DO UPDATE SET failures = excluded.failures, began_at = excluded.began_at`,
		w.kind, w.name, w.failures, store.Micros(w.since))
	return err
}

// poll reads what other nodes blocked and unblocked.
func (l *Ledger) poll(ctx context.Context) error {
	if !l.DB.Postgres() {
		return nil
	}
	now := l.Now()
	if err := l.read(ctx, `WHERE changed_at > $1 ORDER BY changed_at DESC LIMIT $2`, l.polled); err != nil {
		return err
	}
	l.polled = now.Add(-maxLag)
	return nil
}

// sweep deletes what has ended from memory and record. It also keeps the record within its
// bounds: it deletes the blocks that end first and the counts that began first.
func (l *Ledger) sweep(ctx context.Context) error {
	now := l.Now()
	l.lock()
	l.blocks.sweep(now)
	for _, s := range l.counts() {
		s.sweep(now)
	}
	l.mu.Unlock()
	err := l.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM address_block WHERE changed_at < $2 AND (ends_at < $1 OR manual AND ends_at < $2)
			OR NOT manual AND ends_at < (SELECT ends_at FROM address_block WHERE NOT manual ORDER BY ends_at DESC LIMIT 1 OFFSET $3)`,
			store.Micros(now.Add(-strikeMemory)), store.Micros(now.Add(-2*maxLag)), maxBlocks)
		if err != nil {
			return err
		}
		for _, s := range l.counts() {
			_, err := tx.Exec(ctx, `DELETE FROM failure_count WHERE kind = $1 AND (began_at < $2
				OR began_at < (SELECT began_at FROM failure_count WHERE kind = $1 ORDER BY began_at DESC LIMIT 1 OFFSET $3))`,
				s.kind, store.Micros(now.Add(-s.window)), maxTallies)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("couldn't clear the record of failures: %w", err)
	}
	return nil
}

// record writes a block and its event. If the write fails, it keeps them for the next
// flush.
func (l *Ledger) record(ctx context.Context, u unwritten) {
	if l.DB == nil {
		return
	}
	// The block must be recorded also if the guesser closes the connection, which cancels ctx.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	err := l.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		made, err := u.block.save(ctx, tx)
		if err != nil || !made {
			return err
		}
		return l.Events.Append(ctx, tx, u.event)
	})
	if err == nil {
		return
	}
	l.Log.ErrorContext(ctx, "block of an address not written", "network", u.block.Prefix, "error", err)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unwritten == nil {
		l.unwritten = map[netip.Prefix]unwritten{}
	}
	if len(l.unwritten) < maxUnwritten {
		l.unwritten[u.block.Prefix] = u
	}
}

func blockedEvent(b *Block, f Failure) countersign.Event {
	e := countersign.Event{
		Type: countersign.AddressBlocked, Actor: countersign.System, Remote: f.Addr.String(), Via: f.Door, Code: f.Code, Reason: b.Reason,
		At: b.Since, Data: blockData(b),
	}
	e.Data["strikes"] = strconv.Itoa(b.Strikes)
	if f.Device != "" {
		e.Data["claims_device"] = f.Device // a claim, so it does not belong in Device
	}
	return e
}

func blockData(b *Block) map[string]string {
	return map[string]string{"network": b.Prefix.String(), "until": b.Until.UTC().Format(time.RFC3339)}
}

const blockColumns = `prefix, manual, reason, failures, strikes, began_at, ends_at, changed_at`

// save records a block. A block that no operator made does not replace one in force, which
// an operator or another node made first. made reports whether it was recorded.
func (b *Block) save(ctx context.Context, tx *store.Tx) (made bool, err error) {
	n, err := tx.Exec(ctx, `INSERT INTO address_block (`+blockColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (prefix) DO UPDATE SET manual = excluded.manual, reason = excluded.reason, failures = excluded.failures,
			strikes = excluded.strikes, began_at = excluded.began_at, ends_at = excluded.ends_at, changed_at = excluded.changed_at
		WHERE excluded.manual OR address_block.ends_at <= excluded.began_at`,
		b.Prefix.String(), b.Manual, b.Reason, b.Failures, b.Strikes, store.Micros(b.Since), store.Micros(b.Until), store.Micros(b.changed))
	return n > 0, err
}

// lift ends a block on record. The block then does not count as a strike. Its end becomes
// its beginning and not now, because now is in the future on a node whose clock is behind.
func lift(ctx context.Context, tx *store.Tx, p netip.Prefix, now time.Time) (Block, error) {
	b, err := scanBlock(tx.QueryRow(ctx, `UPDATE address_block SET ends_at = began_at, changed_at = $1, strikes = 0
		WHERE prefix = $2 AND ends_at > $1 RETURNING `+blockColumns, store.Micros(now), p.String()))
	if errors.Is(err, sql.ErrNoRows) {
		return Block{}, countersign.Errorf(countersign.NotFound, "%s is not blocked", p).WithNext("list the blocks")
	}
	if err != nil {
		return Block{}, fmt.Errorf("couldn't end the block of %s: %w", p, store.Wrap(err))
	}
	return b, nil
}

// read reads the blocks that the rest of a query selects, and applies them.
func (l *Ledger) read(ctx context.Context, rest string, from time.Time) error {
	list, err := l.list(ctx, rest, store.Micros(from), maxBlocks)
	l.apply(list...)
	return err
}

// apply updates the blocks in memory from the record.
func (l *Ledger) apply(list ...Block) {
	now := l.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range list {
		l.blocks.put(b, now)
		if !b.live(now) {
			l.addresses.clear(b.Prefix.String())
		}
	}
}

func (l *Ledger) list(ctx context.Context, rest string, args ...any) ([]Block, error) {
	list, err := store.List(ctx, l.DB, scanBlock, `SELECT `+blockColumns+` FROM address_block `+rest, args...)
	if err != nil {
		return nil, fmt.Errorf("couldn't read the blocks: %w", err)
	}
	return list, nil
}

func readBlock(ctx context.Context, tx *store.Tx, p netip.Prefix) (Block, error) {
	b, err := scanBlock(tx.QueryRow(ctx, `SELECT `+blockColumns+` FROM address_block WHERE prefix = $1`, p.String()))
	if errors.Is(err, sql.ErrNoRows) {
		return b, countersign.Errorf(countersign.Conflict, "the block of %s changed meanwhile", p).WithNext("try again")
	}
	if err != nil {
		return b, fmt.Errorf("couldn't read the block of %s: %w", p, store.Wrap(err))
	}
	return b, nil
}

func scanBlock(row store.Row) (b Block, err error) {
	var prefix string
	var since, until, changed int64
	if err := row.Scan(&prefix, &b.Manual, &b.Reason, &b.Failures, &b.Strikes, &since, &until, &changed); err != nil {
		return Block{}, err
	}
	b.Prefix, err = netip.ParsePrefix(prefix)
	b.Prefix = countersign.SourceNetwork(b.Prefix)
	b.Since, b.Until, b.changed = store.Time(since), store.Time(until), store.Time(changed)
	return b, err
}

func scanCount(row store.Row) (w written, err error) {
	var began int64
	err = row.Scan(&w.kind, &w.name, &w.failures, &began)
	w.since = store.Time(began)
	return w, err
}
