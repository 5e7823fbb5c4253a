package access

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

// holder is a device that a client says it is, with what it may show.
type holder struct {
	device, fleet string
	state         countersign.DeviceState
	reason        string
	revoked       countersign.Position // first position of the log after the device last lost its identity
	tags          map[string]string
	rules         string
	secrets       []held
}

// held is a secret on record.
type held struct {
	id       string
	kind     countersign.AccessKind
	verifier []byte
	scram    []byte
	stopped  bool
	reason   string
	made     countersign.Position
	expires  time.Time
}

// errNobody says that there is no such device. Who knocks is not told.
var errNobody = errors.New("there is no such device")

// holder reads the device and its secrets in one query: the newest first, of those
// that were stopped only what keepStopped leaves.
func (d *Decider) holder(ctx context.Context, device string) (*holder, error) {
	if !countersign.IsDeviceID(device) {
		return nil, errNobody
	}
	rows, err := d.DB.Query(ctx, `SELECT d.id, d.fleet, d.state, d.reason, d.revoked_pos, d.tags, f.rules,
			s.id, s.kind, s.verifier, s.scram, s.state, s.reason, s.created_pos, s.expires_at
		FROM device d JOIN fleet f ON f.name = d.fleet LEFT JOIN device_secret s ON s.device = d.id
		WHERE d.id = $1 ORDER BY s.created_pos DESC, s.created_at DESC, s.id LIMIT $2`, device, maxSecrets+keepStopped)
	if err != nil {
		return nil, fmt.Errorf("couldn't read a device's secrets: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var h *holder
	for rows.Next() {
		var tags string
		var id, kind, state, reason sql.NullString
		var made, expires sql.NullInt64
		var now holder
		var s held
		err := rows.Scan(&now.device, &now.fleet, &now.state, &now.reason, &now.revoked, &tags, &now.rules,
			&id, &kind, &s.verifier, &s.scram, &state, &reason, &made, &expires)
		if err != nil {
			return nil, fmt.Errorf("couldn't read a device's secrets: %w", store.Wrap(err))
		}
		if h == nil {
			h = &now
			if tags != "" {
				if err := json.Unmarshal([]byte(tags), &h.tags); err != nil {
					return nil, fmt.Errorf("couldn't read the tags of a device: %w", err)
				}
			}
		}
		if id.Valid {
			s.id, s.kind, s.stopped, s.reason = id.String, countersign.AccessKind(kind.String), state.String != secretActive, reason.String
			s.made, s.expires = countersign.Position(made.Int64), store.Time(expires.Int64)
			h.secrets = append(h.secrets, s)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("couldn't read a device's secrets: %w", store.Wrap(err))
	}
	if h == nil {
		return nil, errNobody
	}
	return h, nil
}

// refusal says why the device may not come in by what it proved; first: it may, and
// that is its first use. What was made before the device last lost its identity
// brings it back in no state: not even beside the new one. The word of a broker is
// not made but given anew.
func (h *holder) refusal(p proof) (code countersign.Code, reason string, first bool) {
	newer := p.made >= h.revoked
	switch {
	case h.state == countersign.DeviceRetired:
		return countersign.DeviceGone, "the device is retired", false
	case h.state == countersign.DeviceSuspended:
		return countersign.DeviceOnHold, because("the device is suspended", h.reason), false
	case h.state == countersign.DeviceRegistered && newer && !p.vouched:
		return "", "", true
	case h.state != countersign.DeviceActive:
		return countersign.NotAllowed, fmt.Sprintf("the device is %s", h.state), false
	case !newer && !p.vouched:
		return countersign.NotAllowed, "the credential is older than the device's identity", false
	}
	return "", "", false
}

// proof is what a device has shown to be right.
type proof struct {
	kind       countersign.AccessKind
	credential string               // kind:id
	made       countersign.Position // of the log, when the credential was made
	vouched    bool                 // by a broker, which authenticated the device by itself
	until      time.Time            // when what was shown ends; zero: never
}

// decide holds a device that has proved itself against its record.
func (d *Decider) decide(ctx context.Context, c countersign.Connection, h *holder, p proof) Decision {
	dec := Decision{Known: true, Kind: p.kind, Subject: policy.Subject{Tags: h.tags}, Verdict: countersign.Verdict{
		Device: h.device, Fleet: h.fleet, Credential: p.credential, NotAfter: p.until,
	}}
	dec.Code, dec.Reason, dec.FirstUse = h.refusal(p)
	if dec.Code == "" {
		read, err := d.rules.of(h.fleet, h.rules)
		switch {
		case err != nil:
			dec.Code, dec.Reason = countersign.Unavailable, "the rules of the fleet cannot be read now"
		case p.kind != "" && !Accepts(read.Access, p.kind):
			dec.Code, dec.Reason = countersign.NotAllowed, fmt.Sprintf("fleet %s does not accept a %s", h.fleet, p.kind)
		}
		dec.Budget = read.Budget.WithDefaults()
	}
	if dec.Code == "" {
		dec.Code, dec.Reason = d.checkClient(ctx, c.ClientID, h.device)
	}
	return dec
}

// wrong refuses a secret. It says the same whether there is such a device or not.
func (d *Decider) wrong(c countersign.Connection, kind countersign.AccessKind, claims string, h *holder) Decision {
	dec := refuse(countersign.BadCredential, "the user name or the secret is wrong")
	dec.Kind, dec.Claims = kind, claims
	if h != nil {
		dec.Device, dec.Fleet = h.device, h.fleet
	}
	if len(c.Password) > 0 {
		dec.Tried = d.tried(c.Password)
	}
	return dec
}

// tried tells one wrong secret from others and nothing else of it: 32 bits under a
// key of ours fit too many secrets to find it out.
func (d *Decider) tried(secret []byte) string {
	if d.Sealer == nil {
		return ""
	}
	sum, err := d.keyed("tried secrets", secret)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(sum[:4])
}

// keyed is a hash that nobody makes without the server's key.
func (d *Decider) keyed(purpose string, parts ...[]byte) ([]byte, error) {
	key, err := d.Sealer.Derive(purpose)
	if err != nil {
		return nil, fmt.Errorf("couldn't derive the key of %s: %w", purpose, err)
	}
	h := hmac.New(sha256.New, key)
	for i, p := range parts {
		if i > 0 {
			h.Write([]byte{0}) // no part but the last may hold one
		}
		h.Write(p)
	}
	return h.Sum(nil), nil
}

func unreadable() Decision {
	return refuse(countersign.Unavailable, "the record of the device cannot be read now")
}

// byBroker takes the word of a broker or proxy that has authenticated the device
// by itself, and looks at the device and at what its session rests on: what it came in by
// where that is known, else any certificate that a broker may have verified.
func (d *Decider) byBroker(ctx context.Context, c countersign.Connection) Decision {
	h, err := d.holder(ctx, c.Username)
	switch {
	case errors.Is(err, errNobody):
		dec := refuse(countersign.NotAllowed, "the broker's device is not on record")
		dec.Claims = c.Username
		return dec
	case err != nil:
		return unreadable()
	}
	p := proof{credential: "vouched:" + c.Vouched, vouched: true}
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
	case first: // registered: it has no identity with us yet, and a broker cannot give it one
		code, reason = countersign.NotAllowed, "the device is registered"
	}
	dec.FirstUse, dec.Code, dec.Reason = false, code, reason
	return dec
}

// withExchange holds an exchange that a client with a certificate went through all
// the same against the certificate: who fails in it, or in another's name, is not
// who the certificate says.
func (d *Decider) withExchange(ctx context.Context, c countersign.Connection, dec Decision) Decision {
	if c.Exchange == nil || dec.Code != "" {
		return dec
	}
	x := d.byExchange(ctx, c)
	if x.Code == "" && x.Device != dec.Device {
		x.Code, x.Reason = countersign.SubjectMismatch, "the certificate and the SCRAM exchange are for different devices"
	}
	if x.Code == "" {
		return dec
	}
	return x
}

// tokenOf asks for the token, and notes which wrong one it was.
func (d *Decider) tokenOf(ctx context.Context, c countersign.Connection) Decision {
	dec := d.byToken(ctx, c)
	dec.Kind = countersign.AccessToken
	if dec.Code == countersign.BadCredential {
		dec.Tried = d.tried(c.Password)
	}
	return dec
}
