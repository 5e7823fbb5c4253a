package access

import (
	"context"
	"crypto/subtle"
	"errors"
	"time"

	"github.com/countersign-iot/countersign"
)

// bySecret identifies a device by its id as the user name and a secret as the password.
func (d *Decider) bySecret(ctx context.Context, c countersign.Connection) Decision {
	h, err := d.holder(ctx, c.Username)
	if err != nil {
		return unreadable()
	}
	s, err := d.Secrets.match(ctx, c, h)
	switch {
	case countersign.CodeOf(err) == countersign.Unavailable:
		dec := refuse(countersign.Unavailable, countersign.Public(err).Message)
		dec.Kind, dec.Claims = presumed(c.Password), c.Username
		return dec
	case err != nil:
		return unreadable()
	case s == nil:
		return d.wrong(c, presumed(c.Password), c.Username, h)
	}
	return d.decideSecret(ctx, c, h, s)
}

// decideSecret decides about a device that proved one of its secrets. A secret that was
// stopped or has expired is refused with the reason, and not as a guess.
func (d *Decider) decideSecret(ctx context.Context, c countersign.Connection, h *holder, s *Secret) Decision {
	kind := s.Kind
	if c.Exchange != nil {
		kind = countersign.AccessSCRAM
	}
	dec := d.decide(ctx, c, h, proof{kind: kind, credential: s.Credential(), made: s.made, until: s.ExpiresAt})
	switch now := d.Now(); {
	case dec.Code == countersign.DeviceGone || dec.Code == countersign.DeviceOnHold:
	case !s.Active():
		dec.Code, dec.Reason, dec.FirstUse = countersign.CredentialExpire, because("the secret was stopped", s.Reason), false
	case s.Ended(now):
		dec.Code, dec.Reason, dec.FirstUse = countersign.CredentialExpire, "the secret expired "+ago(now.Sub(s.ExpiresAt))+" ago", false
	}
	return dec
}

// match returns the device's secret that the client presented, or nil if it is none of
// them. Secrets that the server made are compared by their keyed hash, in microseconds.
// Only if the presented one does not have their form, and the device has a password,
// argon2id runs. A wrong secret takes the time of a run in either case.
func (k *Secrets) match(ctx context.Context, c countersign.Connection, h *holder) (found *Secret, err error) {
	sum, err := k.hash(h.device, c.Password)
	if err != nil {
		return nil, err
	}
	for i := range h.secrets { // all of them, in constant time
		s := &h.secrets[i]
		if s.Kind == countersign.AccessSecret && subtle.ConstantTimeCompare(sum, s.verifier) == 1 {
			found = s
		}
	}
	if found != nil {
		return found, nil
	}
	var chosen []*Secret
	if presumed(c.Password) != countersign.AccessSecret {
		chosen = h.passwords(k.Now())
	}
	if len(chosen) == 0 {
		k.hasher.simulate(ctx)
		return nil, nil //nolint:nilnil // none of them, and no failure
	}
	who := regular{device: h.device}
	if src, ok := countersign.SourceOf(c.Remote.Addr()); ok {
		who.source = src.String()
	}
	var unread error
	err = k.hasher.run(ctx, k.Now, who, func() {
		for _, s := range chosen {
			p, err := parseArgon(string(s.verifier))
			if err != nil {
				unread = err
				return
			}
			if p.matches(c.Password) {
				found = s
				return
			}
		}
	})
	if err = errors.Join(err, unread); err != nil {
		return nil, err
	}
	if found != nil && found.Active() {
		k.hasher.remember(who)
	}
	return found, nil
}

// passwords returns the passwords to compare: those that are valid now, else the newest of
// the others, so that a device learns that its password was stopped.
func (h *holder) passwords(now time.Time) (good []*Secret) {
	var last *Secret
	for i := range h.secrets {
		s := &h.secrets[i]
		switch {
		case s.Kind != countersign.AccessPassword:
		case s.Active() && !s.Ended(now):
			good = append(good, s)
		case last == nil:
			last = s
		}
	}
	if len(good) == 0 && last != nil {
		return []*Secret{last}
	}
	return good
}
