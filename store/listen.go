package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// beat is how long a silent stream is believed before a ping. Decisions are
	// cached while the stream is up, so a dead one must be noticed in seconds.
	beat = 2 * time.Second
	// beatWait bounds the answer to that ping.
	beatWait = 2 * time.Second
	// reconnectEvery is when another attempt to connect begins, beside those that have
	// not failed yet: an attempt on a server that hangs, or whose machine is gone, must
	// not delay the one that succeeds.
	reconnectEvery = 250 * time.Millisecond
	// maxReconnects bounds the attempts at once; each ends after pgConnect.
	maxReconnects = 20
	// lostAfter is how long connecting may fail before the database counts as lost: a
	// connection that was closed, or a quick restart, is no outage.
	lostAfter = time.Second
)

func never() (time.Time, bool) { return time.Time{}, false }

func (p *postgres) lost() (since time.Time, lost bool) {
	if t := p.lostSince.Load(); t != nil {
		return *t, true
	}
	return time.Time{}, false
}

// listen keeps one connection of its own outside of the pool, since LISTEN
// belongs to the session.
func (p *postgres) listen(ctx context.Context, onNotify func(string), onState func(bool)) error {
	for {
		conn := p.reconnect(ctx)
		if conn == nil {
			return nil
		}
		// Here and not where an attempt connects: a timer of reconnect that fires between
		// that and the hand-over would count the database as lost for good.
		p.found(ctx)
		onState(true)
		err := stream(ctx, conn, onNotify)
		if ctx.Err() == nil {
			onState(false)
			p.opts.Log.WarnContext(ctx, "database notifications lost", "error", err)
		}
	}
}

// reconnect connects and listens, however long it takes; nil: ctx has ended.
func (p *postgres) reconnect(ctx context.Context) *pgx.Conn {
	trying, cancel := context.WithCancel(ctx)
	defer cancel()
	made, failed := make(chan *pgx.Conn), make(chan error, maxReconnects)
	began, tolerated := p.opts.Now(), time.NewTimer(lostAfter)
	defer tolerated.Stop()
	running, lost := 0, false
	var last error
	for {
		if running < maxReconnects {
			running++
			go p.attach(trying, made, failed)
		}
		select {
		case <-ctx.Done():
			return nil
		case conn := <-made:
			return conn
		case <-tolerated.C:
			lost = true
		case <-time.After(reconnectEvery/2 + rand.N(reconnectEvery/2)): //nolint:gosec // jitter is no secret
		}
		for done := false; !done; {
			select {
			case last = <-failed:
				running--
			default:
				done = true
			}
		}
		if lost {
			p.lose(ctx, began, last)
		}
	}
}

// lose notes that the database is lost. A server that has no connection left for us,
// or does not let us listen, is not.
func (p *postgres) lose(ctx context.Context, since time.Time, cause error) {
	if errors.Is(cause, errDeaf) || strings.HasPrefix(pgCode(cause), "53") || !p.lostSince.CompareAndSwap(nil, &since) {
		return
	}
	p.opts.Log.ErrorContext(ctx, "database lost", "error", cause)
}

func (p *postgres) found(ctx context.Context) {
	if since := p.lostSince.Swap(nil); since != nil {
		p.opts.Log.WarnContext(ctx, "database back", "lost_for", p.opts.Now().Sub(*since))
	}
}

// attach is one attempt to connect and to listen.
func (p *postgres) attach(ctx context.Context, made chan<- *pgx.Conn, failed chan<- error) {
	connecting, cancel := context.WithTimeout(ctx, pgConnect)
	defer cancel()
	conn, err := pgx.ConnectConfig(connecting, p.config)
	if err == nil {
		if _, err = conn.Exec(connecting, "LISTEN "+channel); err == nil {
			select {
			case made <- conn:
				return
			case <-ctx.Done(): // another attempt was quicker
			}
		}
		closeConn(ctx, conn)
		err = errDeaf
	}
	failed <- err
}

// errDeaf means that the database can be reached, and that it sends no notifications.
var errDeaf = errors.New("the database does not let this node listen")

func closeConn(ctx context.Context, conn *pgx.Conn) {
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), beatWait)
	defer cancel()
	_ = conn.Close(closing) // nothing is lost with it
}

// stream reads notifications until the connection is lost.
func stream(ctx context.Context, conn *pgx.Conn, onNotify func(string)) error {
	defer closeConn(ctx, conn)
	for {
		payload, err := next(ctx, conn)
		if err != nil {
			return err
		}
		onNotify(payload)
	}
}

// next waits for a notification, pinging while there is none: a peer that
// vanished without a word closes nothing.
func next(ctx context.Context, conn *pgx.Conn) (string, error) {
	for {
		waiting, cancel := context.WithTimeout(ctx, beat)
		n, err := conn.WaitForNotification(waiting)
		cancel()
		if err == nil {
			return n.Payload, nil
		}
		if ctx.Err() != nil || !isTimeout(err) {
			return "", err
		}
		pinging, cancel := context.WithTimeout(ctx, beatWait)
		err = conn.Ping(pinging)
		cancel()
		if err != nil {
			return "", err
		}
	}
}

func isTimeout(err error) bool {
	netErr, ok := errors.AsType[net.Error](err)
	return errors.Is(err, context.DeadlineExceeded) || ok && netErr.Timeout()
}
