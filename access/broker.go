package access

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// byBroker decides about a device that a broker or proxy has authenticated by itself. It
// checks the device and what its session rests on: the credential that it connected with
// if that is known, else any certificate that the broker may have verified.
func (d *Decider) byBroker(ctx context.Context, c countersign.Connection) Decision {
	h, err := d.holder(ctx, c.Username)
	if err != nil {
		return unreadable()
	}
	if !h.known() {
		dec := refuse(countersign.NotAllowed, "the broker's device is not on record")
		dec.Claims = c.Username
		return dec
	}
	p := proof{credential: vouchedCredential + c.Vouched, vouched: true}
	rests := countersign.Session{Device: h.device, Fleet: h.fleet, Credential: p.credential, Remote: c.Remote}
	if c.Rests != nil {
		rests = *c.Rests
		p.credential, p.until = rests.Credential, rests.NotAfter
	}
	dec := d.decide(ctx, c, h, p)
	dec.Cert = rests.Cert
	if dec.Code != "" {
		return dec
	}
	code, reason, first, err := d.Refusal(ctx, d.DB, rests)
	switch {
	case err != nil:
		return unreadable()
	case first: // registered: it has no identity here yet, and a broker cannot create one
		code, reason = countersign.NotAllowed, "the device is registered"
	}
	dec.FirstUse, dec.Code, dec.Reason = false, code, reason
	return dec
}

const (
	// maxBrokerSessions bounds the sessions that are kept for one device at one broker, so
	// that a device which connects endlessly does not fill the table. The latest are kept;
	// an older one must connect again when the broker next asks about it.
	maxBrokerSessions = 64
	// brokerSessionAge is how long a session is kept if no broker reports its end.
	brokerSessionAge = 90 * 24 * time.Hour
	// successorTime is how late a broker may report the end of a session that another one
	// under the same name has replaced.
	successorTime = 10 * time.Second
)

// BrokerSessions records which credentials the sessions at foreign brokers rest on. A
// broker asks about a session for as long as it lasts, also at another node and after a
// restart of this one. By then only the record shows whether the session connected with
// a secret that has been stopped since, or with another one.
type BrokerSessions struct {
	DB  *store.DB
	Now func() time.Time
}

// Keep records an admitted session under each of the names that the broker may ask by.
// s.Gateway and s.ClientID are the broker's. Keep returns once the record is durable.
func (b *BrokerSessions) Keep(ctx context.Context, s countersign.Session, names ...countersign.BrokerName) error {
	unnamed := 0
	if s.ClientID == "" {
		unnamed = 1
	}
	err := b.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		for _, n := range names {
			_, err := tx.Exec(ctx, `INSERT INTO broker_session (gateway, client, username, device, fleet, issuer, serial, credential, protocol, since, not_after, unnamed)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
				ON CONFLICT (gateway, client, username) DO UPDATE SET device = excluded.device, fleet = excluded.fleet, issuer = excluded.issuer,
					serial = excluded.serial, credential = excluded.credential, protocol = excluded.protocol, since = excluded.since, not_after = excluded.not_after,
					unnamed = excluded.unnamed`,
				s.Gateway, n.Client, n.User, s.Device, s.Fleet, s.Cert.Issuer, string(s.Cert.Serial), s.Credential, s.Protocol,
				store.Micros(s.Since), store.Micros(s.NotAfter), unnamed)
			if err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `DELETE FROM broker_session WHERE gateway = $1 AND device = $2 AND since <=
			(SELECT since FROM broker_session WHERE gateway = $1 AND device = $2 AND client <> '' ORDER BY since DESC LIMIT 1 OFFSET $3)`,
			s.Gateway, s.Device, maxBrokerSessions)
		return err
	})
	if err != nil {
		return fmt.Errorf("record the session at %s: %w", s.Gateway, err)
	}
	return nil
}

// Recall returns what was kept of a session, or NotFound. If no session has the client's
// name, it returns the user's session that the broker reported without a client name.
func (b *BrokerSessions) Recall(ctx context.Context, gateway string, n countersign.BrokerName) (countersign.Session, error) {
	s := countersign.Session{Gateway: gateway, ClientID: n.Client}
	var since, end int64
	err := b.DB.QueryRow(ctx, `SELECT device, fleet, issuer, serial, credential, protocol, since, not_after
		FROM broker_session WHERE gateway = $1 AND username = $3 AND (client = $2 OR client = '' AND unnamed = 1)
		ORDER BY client DESC LIMIT 1`, gateway, n.Client, n.User).
		Scan(&s.Device, &s.Fleet, &s.Cert.Issuer, &s.Cert.Serial, &s.Credential, &s.Protocol, &since, &end)
	if errors.Is(err, sql.ErrNoRows) {
		return s, countersign.Errorf(countersign.NotFound, "no session is on record under this name")
	}
	if err != nil {
		return s, fmt.Errorf("read the session at %s: %w", gateway, store.Wrap(err))
	}
	s.Since, s.NotAfter = store.Time(since), store.Time(end)
	return s, nil
}

// maxResting bounds the sessions of one credential that Resting reads. A device has up to
// maxBrokerSessions at each broker; a group key has those of all its devices.
const maxResting = 10_000

// Resting calls found for each session that rests on a credential, once for each name
// that it was kept under, the latest session first.
func (b *BrokerSessions) Resting(ctx context.Context, credential string, found func(countersign.Session, countersign.BrokerName)) error {
	var n countersign.BrokerName
	scan := func(row store.Row) (countersign.Session, error) {
		s := countersign.Session{Credential: credential}
		var since, end int64
		err := row.Scan(&s.Gateway, &n.Client, &n.User, &s.Device, &s.Fleet, &s.Cert.Issuer, &s.Cert.Serial, &s.Protocol, &since, &end)
		s.ClientID, s.Since, s.NotAfter = n.Client, store.Time(since), store.Time(end)
		return s, err
	}
	for s, err := range store.Rows(ctx, b.DB, scan, `SELECT gateway, client, username, device, fleet, issuer, serial, protocol, since, not_after
		FROM broker_session WHERE credential = $1 ORDER BY since DESC LIMIT $2`, credential, maxResting) {
		if err != nil {
			return fmt.Errorf("read the sessions at brokers by their credential: %w", err)
		}
		found(s, n)
	}
	return nil
}

// End deletes a session that its broker reports as closed. Without a user name, which a
// broker may leave out, it deletes those of all users. It keeps a session that is younger
// than successorTime: that is the successor, under the same name, of the one that ended.
func (b *BrokerSessions) End(ctx context.Context, gateway string, n countersign.BrokerName) error {
	err := b.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM broker_session WHERE gateway = $1 AND client = $2 AND ($3 = '' OR username = $3) AND since < $4`,
			gateway, n.Client, n.User, store.Micros(b.Now().Add(-successorTime)))
		return err
	})
	if err != nil {
		return fmt.Errorf("forget the session at %s: %w", gateway, err)
	}
	return nil
}

// DropBrokerSessions deletes the sessions of a device that loses its identity, in the
// same transaction, so that they do not count for the device when it enrolls again.
func DropBrokerSessions(ctx context.Context, tx *store.Tx, device string) error {
	if _, err := tx.Exec(ctx, `DELETE FROM broker_session WHERE device = $1`, device); err != nil {
		return fmt.Errorf("forget the sessions of %s at brokers: %w", device, err)
	}
	return nil
}

// Prune deletes the sessions whose credential has ended, and those that began longer than
// brokerSessionAge ago, which must then connect again.
func (b *BrokerSessions) Prune(ctx context.Context) error {
	now := b.Now()
	err := b.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM broker_session WHERE not_after <> 0 AND not_after < $1 OR since < $2`,
			store.Micros(now), store.Micros(now.Add(-brokerSessionAge)))
		return err
	})
	if err != nil {
		return fmt.Errorf("forget old sessions at brokers: %w", err)
	}
	return nil
}
