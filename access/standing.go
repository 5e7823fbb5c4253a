package access

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

// Lost is a live session that the record no longer supports, and why.
type Lost struct {
	Session countersign.Session
	Code    countersign.Code
	Reason  string
	ByFleet bool // by what its fleet accepts or permits, as perhaps many others
}

// Recheck compares live sessions with the record as it is now and returns those that
// would not be let in any more as they are: by their certificate, device, credential or
// authority, by what their fleet accepts, and by its policy. It reads in batches, so
// that it may be asked about all sessions of a node. After an error nothing is known
// of any of them.
func (d *Desk) Recheck(ctx context.Context, sessions []countersign.Session) ([]Lost, error) {
	all, err := d.standings(ctx, sessions)
	if err != nil {
		return nil, err
	}
	var lost []Lost
	fleets := map[string][]countersign.Session{}
	now := d.Now()
	for _, s := range sessions {
		if code, reason := all.refusal(s, now); code != "" {
			lost = append(lost, Lost{s, code, reason, false})
			continue
		}
		fleets[s.Fleet] = append(fleets[s.Fleet], s)
	}
	for _, fleet := range slices.Sorted(maps.Keys(fleets)) {
		more, err := d.recheckFleet(ctx, fleet, fleets[fleet])
		if err != nil {
			return nil, err
		}
		lost = append(lost, more...)
	}
	return lost, nil
}

// recheckFleet compares sessions whose devices and credentials are in order with what
// their fleet accepts and permits.
func (d *Desk) recheckFleet(ctx context.Context, fleet string, sessions []countersign.Session) ([]Lost, error) {
	var lost []Lost
	unaccepted, err := d.Unaccepted(ctx, fleet, sessions)
	if err != nil {
		return nil, err
	}
	for _, s := range unaccepted {
		lost = append(lost, Lost{s, countersign.NotAllowed, "the fleet no longer accepts what the session came in by", true})
	}
	if d.Policies == nil {
		return lost, nil
	}
	in, err := d.Policies.Of(ctx, fleet)
	if err != nil {
		return nil, err
	}
	losers, err := d.Policies.Losers(ctx, in.Policy, sessions)
	if err != nil {
		return nil, err
	}
	for _, s := range losers {
		lost = append(lost, Lost{s, countersign.NotAllowed, "the policy of the fleet changed", true})
	}
	return lost, nil
}

// standings are what is on record of the devices and credentials of some sessions.
type standings struct {
	devices     map[string]holder // without their secrets
	certs       map[countersign.CertRef]record
	secrets     map[string]held
	tokens      map[string]Token
	credentials map[string]bool // in force
}

// names are the keys of what sessions rest on, each once.
type names struct {
	devices, secrets, tokens, credentials map[string]bool
	serials                               map[countersign.Serial]bool
}

func namesOf(sessions []countersign.Session) names {
	n := names{map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}, map[countersign.Serial]bool{}}
	for _, s := range sessions {
		if policy.KindOf(s.Device) == policy.Devices {
			n.devices[s.Device] = true
		}
		for _, id := range s.Scope {
			n.devices[id] = true
		}
		if !s.Cert.IsZero() {
			n.serials[s.Cert.Serial] = true
		}
		switch kind, id, _ := strings.Cut(s.Credential, ":"); {
		case id == "" || kind == "vouched":
		case kind == "secret":
			n.secrets[id] = true
		case kind == "token":
			n.tokens[id] = true
		default:
			n.credentials[id] = true
		}
	}
	return n
}

func (d *Desk) standings(ctx context.Context, sessions []countersign.Session) (*standings, error) {
	n := namesOf(sessions)
	all := &standings{map[string]holder{}, map[countersign.CertRef]record{}, map[string]held{}, map[string]Token{}, map[string]bool{}}
	for _, read := range []func() error{
		func() error { return all.readDevices(ctx, d.DB, slices.Collect(maps.Keys(n.devices))) },
		func() error { return all.readCertificates(ctx, d.DB, slices.Collect(maps.Keys(n.serials))) },
		func() error { return all.readSecrets(ctx, d.DB, slices.Collect(maps.Keys(n.secrets))) },
		func() error { return all.readTokens(ctx, d.DB, slices.Collect(maps.Keys(n.tokens))) },
		func() error { return all.readCredentials(ctx, d.DB, slices.Collect(maps.Keys(n.credentials)), d.Now()) },
	} {
		if err := read(); err != nil {
			return nil, fmt.Errorf("couldn't compare sessions with the record: %w", err)
		}
	}
	return all, nil
}

func (a *standings) readDevices(ctx context.Context, db *store.DB, ids []string) error {
	return inBatches(ctx, db, `SELECT id, fleet, state, reason FROM device WHERE id IN (`, ids, func(rows *sql.Rows) error {
		var h holder
		err := rows.Scan(&h.device, &h.fleet, &h.state, &h.reason)
		a.devices[h.device] = h
		return err
	})
}

func (a *standings) readCertificates(ctx context.Context, db *store.DB, serials []countersign.Serial) error {
	return inBatches(ctx, db, `SELECT c.issuer, c.serial, c.state, c.reason, c.not_before, c.not_after, c.accept_until, c.revoked_at,
			d.state, d.reason, a.state
		FROM certificate c JOIN device d ON d.id = c.device
			JOIN authority a ON a.id = CASE WHEN c.anchor = '' THEN c.issuer ELSE c.anchor END
		WHERE c.serial IN (`, serials, func(rows *sql.Rows) error {
		var r record
		var from, to, accept, revoked int64
		err := rows.Scan(&r.ref.Issuer, &r.ref.Serial, &r.state, &r.reason, &from, &to, &accept, &revoked,
			&r.deviceState, &r.deviceReason, &r.authorityState)
		r.notBefore, r.notAfter = store.Time(from), store.Time(to)
		r.acceptUntil, r.revoked = store.Time(accept), store.Time(revoked)
		a.certs[r.ref] = r
		return err
	})
}

func (a *standings) readSecrets(ctx context.Context, db *store.DB, ids []string) error {
	return inBatches(ctx, db, `SELECT id, state, expires_at FROM device_secret WHERE id IN (`, ids, func(rows *sql.Rows) error {
		var s held
		var state string
		var expires int64
		err := rows.Scan(&s.id, &state, &expires)
		s.stopped, s.expires = state != secretActive, store.Time(expires)
		a.secrets[s.id] = s
		return err
	})
}

func (a *standings) readTokens(ctx context.Context, db *store.DB, ids []string) error {
	return inBatches(ctx, db, `SELECT `+tokenColumns+` FROM access_token WHERE id IN (`, ids, func(rows *sql.Rows) error {
		k, err := scanToken(rows)
		a.tokens[k.ID] = k
		return err
	})
}

// readCredentials reads which symmetric keys are in force.
func (a *standings) readCredentials(ctx context.Context, db *store.DB, ids []string, now time.Time) error {
	return inBatches(ctx, db, `SELECT id, state, expires_at FROM credential WHERE id IN (`, ids, func(rows *sql.Rows) error {
		var id, state string
		var expires int64
		err := rows.Scan(&id, &state, &expires)
		a.credentials[id] = state == credentialActive && (expires == 0 || now.Before(store.Time(expires)))
		return err
	})
}

// credentialActive is the state of a credential of the registry that is in force.
const credentialActive = "active"

// refusal is why a session rests on nothing that is good now; empty if it does.
func (a *standings) refusal(s countersign.Session, now time.Time) (countersign.Code, string) {
	if !s.NotAfter.IsZero() && now.After(s.NotAfter) {
		return countersign.CredentialExpire, "what the session came in by is at its end"
	}
	if code, reason := a.deviceRefusal(s); code != "" {
		return code, reason
	}
	if !s.Cert.IsZero() {
		rec, ok := a.certs[s.Cert]
		if !ok {
			return countersign.CertUnknown, "the certificate is not on record"
		}
		return rec.refusal(now)
	}
	return a.credentialRefusal(s, now)
}

// deviceRefusal looks at the devices that a session is of, or for.
func (a *standings) deviceRefusal(s countersign.Session) (countersign.Code, string) {
	ids := s.Scope
	if policy.KindOf(s.Device) == policy.Devices {
		ids = append([]string{s.Device}, ids...)
	}
	for _, id := range ids {
		h, ok := a.devices[id]
		switch {
		case !ok:
			return countersign.NotAllowed, "the device is not on record"
		case h.state == countersign.DeviceRegistered: // it has lost its identity since
			return countersign.NotAllowed, "the device is registered"
		case h.fleet != s.Fleet:
			return countersign.NotAllowed, "the device is of another fleet now"
		}
		if code, reason, _ := h.refusal(proof{vouched: true}); code != "" {
			return code, reason
		}
	}
	return "", ""
}

// credentialRefusal looks at what a session without a certificate rests on.
func (a *standings) credentialRefusal(s countersign.Session, now time.Time) (countersign.Code, string) {
	good := false
	switch kind, id, _ := strings.Cut(s.Credential, ":"); {
	case id == "" || kind == "vouched": // a guest, of whom the fleet decides, or the word of a broker
		good = true
	case kind == "secret":
		secret, ok := a.secrets[id]
		good = ok && !secret.stopped && !secret.ended(now)
	case kind == "token":
		token, ok := a.tokens[id]
		good = ok && token.RevokedAt.IsZero() && now.Before(token.ExpiresAt)
	default:
		good = a.credentials[id]
	}
	if good {
		return "", ""
	}
	return countersign.CredentialExpire, "the credential that the session rests on is no longer in force"
}
