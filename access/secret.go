package access

import (
	"context"
	"crypto/subtle"
	"errors"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

// bySecret identifies a device by its id as the user name and a secret as the password.
func (d *Decider) bySecret(ctx context.Context, c countersign.Connection) Decision {
	h, err := d.holder(ctx, c.Username)
	switch {
	case errors.Is(err, errNobody):
		d.hasher.act(ctx)
		return d.wrong(c, presumed(c.Password), c.Username, nil)
	case err != nil:
		return unreadable()
	}
	s, err := d.match(ctx, c, h)
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

// decideSecret holds a device that showed one of its secrets against its record. A
// secret that was good once is no guess.
func (d *Decider) decideSecret(ctx context.Context, c countersign.Connection, h *holder, s *held) Decision {
	kind := s.kind
	if c.Exchange != nil {
		kind = countersign.AccessSCRAM
	}
	dec := d.decide(ctx, c, h, proof{kind: kind, credential: "secret:" + s.id, made: s.made, until: s.expires})
	switch now := d.Now(); {
	case dec.Code == countersign.DeviceGone || dec.Code == countersign.DeviceOnHold:
	case s.stopped:
		dec.Code, dec.Reason, dec.FirstUse = countersign.CredentialExpire, because("the secret was stopped", s.reason), false
	case s.ended(now):
		dec.Code, dec.Reason, dec.FirstUse = countersign.CredentialExpire, "the secret expired "+ago(now.Sub(s.expires))+" ago", false
	}
	return dec
}

func (s *held) ended(now time.Time) bool { return !s.expires.IsZero() && now.After(s.expires) }

// match finds the secret that was shown, nil if it is none of the device's. What we
// made is compared by its keyed hash, in microseconds; only what is not made by us and
// may be a password that somebody chose is worth a run of argon2id. Either way a
// wrong one takes the time of a check.
func (d *Decider) match(ctx context.Context, c countersign.Connection, h *holder) (*held, error) {
	if s, err := d.matchMade(c.Password, h); s != nil || err != nil {
		return s, err
	}
	var chosen []*held
	if presumed(c.Password) != countersign.AccessSecret {
		chosen = h.passwords(d.Now())
	}
	if len(chosen) == 0 {
		d.hasher.act(ctx)
		return nil, nil //nolint:nilnil // none of them, and no failure
	}
	who := regular{device: h.device}
	if src, ok := countersign.SourceOf(c.Remote.Addr()); ok {
		who.source = src.String()
	}
	var found *held
	var unread error
	err := d.hasher.run(ctx, d.Now, who, func() {
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
	if found != nil && !found.stopped {
		d.hasher.remember(who)
	}
	return found, nil
}

// passwords are those to try: what may come in, else the last one that could, so that
// a device is told that its password was stopped.
func (h *holder) passwords(now time.Time) []*held {
	var good []*held
	var last *held
	for i := range h.secrets {
		s := &h.secrets[i]
		switch {
		case s.kind != countersign.AccessPassword:
		case !s.stopped && !s.ended(now):
			good = append(good, s)
		case last == nil:
			last = s
		}
	}
	if len(good) == 0 && last != nil {
		return []*held{last}
	}
	return good
}

// matchMade compares with every secret that we made, whichever it may be.
func (d *Decider) matchMade(secret []byte, h *holder) (*held, error) {
	sum, err := d.secretHash(h.device, secret)
	if err != nil {
		return nil, err
	}
	var found *held
	for i := range h.secrets {
		s := &h.secrets[i]
		if s.kind == countersign.AccessSecret && subtle.ConstantTimeCompare(sum, s.verifier) == 1 {
			found = s
		}
	}
	return found, nil
}

func (d *Decider) secretHash(device string, secret []byte) ([]byte, error) {
	return d.keyed("connection secrets", []byte(device), secret)
}

// Unguessable reports whether what a client shows cannot be guessed whoever it is: it
// is signed, proved, or a secret of 256 random bits by its form. A password that a
// person chose is not.
func Unguessable(c countersign.Connection) bool {
	return c.Exchange != nil || looksLikeToken(c.Password) || looksLikeSAS(c.Password) || presumed(c.Password) == countersign.AccessSecret
}

// presumed is the kind of secret that somebody shows, by its form.
func presumed(secret []byte) countersign.AccessKind {
	if len(secret) == len(SecretPrefix)+secretText && strings.HasPrefix(string(secret[:len(SecretPrefix)]), SecretPrefix) {
		return countersign.AccessSecret
	}
	return countersign.AccessPassword
}
