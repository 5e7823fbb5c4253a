package access

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

// holder is the device that a client claims to be, with the credentials that it may present.
type holder struct {
	device, fleet string
	state         countersign.DeviceState
	reason        string
	revoked       countersign.Position // first position of the log after the device last lost its identity
	tags          map[string]string
	rules         string
	secrets       []Secret
}

// holder reads the device and its secrets in one query, the newest secret first, with up
// to keepStopped that were stopped. It returns a holder without a name if the device is
// not on record, and no error, so that the client does not learn that.
func (d *Decider) holder(ctx context.Context, device string) (*holder, error) {
	h := &holder{}
	if !countersign.IsDeviceID(device) {
		return h, nil
	}
	var tags string
	scan := func(row store.Row) (s Secret, err error) {
		err = s.scan(row, &h.device, &h.fleet, &h.state, &h.reason, &h.revoked, &tags, &h.rules)
		return s, err
	}
	for s, err := range store.Rows(ctx, d.DB, scan, `SELECT d.id, d.fleet, d.state, d.reason, d.revoked_pos, d.tags, f.rules, `+secretColumns+`
		FROM device d JOIN fleet f ON f.name = d.fleet LEFT JOIN device_secret s ON s.device = d.id
		WHERE d.id = $1 ORDER BY s.created_pos DESC, s.created_at DESC, s.id LIMIT $2`, device, maxSecrets+keepStopped) {
		if err != nil {
			return nil, fmt.Errorf("couldn't read a device's secrets: %w", err)
		}
		if s.ID != "" {
			h.secrets = append(h.secrets, s)
		}
	}
	if tags != "" {
		if err := json.Unmarshal([]byte(tags), &h.tags); err != nil {
			return nil, fmt.Errorf("couldn't read the tags of a device: %w", err)
		}
	}
	return h, nil
}

// known reports whether the device is on record.
func (h *holder) known() bool { return h.device != "" }

// proof is the result of a successful authentication.
type proof struct {
	kind       countersign.AccessKind
	credential string               // kind:id
	made       countersign.Position // of the log, when the credential was made
	vouched    bool                 // by a broker, which authenticated the device by itself
	until      time.Time            // when the credential ends; zero: never
}

// decide decides about a device that has proved its identity, from its record and the
// rules of its fleet.
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

// refusal reports why the device is refused with what it proved. first is true if it is
// not refused and this is its first use. A credential that was made before the device last
// lost its identity is refused in every state, also beside a new identity. This does not
// apply to a broker that vouches: it has authenticated the device just now.
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

// wrong refuses a wrong secret. The sentence is the same if there is no such device.
func (d *Decider) wrong(c countersign.Connection, kind countersign.AccessKind, claims string, h *holder) Decision {
	dec := refuse(countersign.BadCredential, "the user name or the secret is wrong")
	dec.Kind, dec.Claims, dec.Device, dec.Fleet = kind, claims, h.device, h.fleet
	if len(c.Password) > 0 {
		dec.Tried = d.Secrets.tried(c.Password)
	}
	return dec
}
