package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/weakkey"
)

// upkeep is what a server does for itself while it runs.
type upkeep struct {
	*core
	identity *identity
	ca       *ca.CA
	tokens   *access.Tokens
}

// identityRetry is the pause between attempts to get a certificate where there is none.
const identityRetry = 5 * time.Second

// awaitIdentity gets the server its certificate where the start could not.
func (u *upkeep) awaitIdentity(ctx context.Context) error {
	for u.identity.current.Load() == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(identityRetry):
		}
		if err := u.identity.renew(ctx); err != nil && ctx.Err() == nil {
			u.log.ErrorContext(ctx, "no server certificate: the TLS listeners refuse handshakes", "error", err, "retry_in", identityRetry)
		}
	}
	return nil
}

// upkeepEvery is how often the server maintains itself.
const upkeepEvery = 10 * time.Minute

// run renews the server's certificate and voids the serials of dead nodes.
func (u *upkeep) run(ctx context.Context) error {
	return every(ctx, upkeepEvery, func() {
		failed := func(what string, err error) {
			if err != nil {
				u.log.ErrorContext(ctx, what, "error", err) //nolint:sloglint // one of the constants below
			}
		}
		if u.identity.due() {
			failed("server certificate not renewed", u.identity.renew(ctx))
		}
		failed("serials not voided", voidSerials(ctx, u.ca, u.events, false))
		failed("could not forget old sessions at brokers", (&access.BrokerSessions{DB: u.db, Now: u.now}).Prune(ctx))
		failed("old access tokens not forgotten", u.tokens.Prune(ctx))
	})
}

// every calls f at a pace until ctx ends.
func every(ctx context.Context, pace time.Duration, f func()) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f()
		}
	}
}

func voidSerials(ctx context.Context, c *ca.CA, events *event.Log, all bool) error {
	voided, err := c.VoidSerials(ctx, all)
	if voided > 0 {
		events.Later(countersign.Event{
			Type: countersign.SerialsVoided, Actor: countersign.System, Reason: "an earlier process ended without spending them",
			Data: map[string]string{"count": strconv.Itoa(voided)},
		})
	}
	return err
}

// readWeakKeys reads the lists of keys that are known to be weak.
func readWeakKeys(paths []string) (*weakkey.Blocklist, error) {
	list := &weakkey.Blocklist{}
	for _, path := range paths {
		f, err := os.Open(path) //nolint:gosec // the operator names it
		if err == nil {
			err = errors.Join(list.Read(f), f.Close())
		}
		if err != nil {
			return nil, fmt.Errorf("read weak_keys %s: %w", path, err)
		}
	}
	return list, nil
}
