package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// beat is how long a silent stream is believed before a ping. Decisions are
	// cached while the stream is up, so a dead one must be noticed in seconds.
	beat = 2 * time.Second
	// beatWait bounds the answer to that ping.
	beatWait = 2 * time.Second
	// reconnectMin and reconnectMax bound the pause between attempts, which doubles.
	reconnectMin = 50 * time.Millisecond
	reconnectMax = 5 * time.Second
)

// listen keeps one connection of its own outside of the pool, since LISTEN
// belongs to the session.
func (p *postgres) listen(ctx context.Context, onNotify func(string), onState func(bool)) error {
	pause := reconnectMin
	for ctx.Err() == nil {
		up := false
		err := p.stream(ctx, onNotify, func() { up = true; onState(true) })
		if ctx.Err() != nil {
			break
		}
		if up {
			onState(false)
			pause = reconnectMin
		}
		p.opts.Log.WarnContext(ctx, "database notifications lost", "error", err, "retry_in", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)): //nolint:gosec // jitter is no secret
		}
		pause = min(2*pause, reconnectMax)
	}
	return nil
}

// stream is one connection, from LISTEN to its loss.
func (p *postgres) stream(ctx context.Context, onNotify func(string), up func()) error {
	conn, err := pgx.ConnectConfig(ctx, p.config)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), beatWait)
		defer cancel()
		_ = conn.Close(closing) // nothing is lost with it
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	up()
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
