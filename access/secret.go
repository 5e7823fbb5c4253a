package access

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

// Unguessable reports whether what a client shows cannot be guessed whoever it is: it
// is signed, proved, or a secret of 256 random bits by its form. A password that a
// person chose is not.
func Unguessable(c countersign.Connection) bool {
	return c.Exchange != nil || looksLikeToken(c.Password) || looksLikeSAS(c.Password) || presumed(c.Password) == countersign.AccessSecret
}

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

// presumed is the kind of a secret by its form.
func presumed(secret []byte) countersign.AccessKind {
	if len(secret) == len(SecretPrefix)+secretText && strings.HasPrefix(string(secret), SecretPrefix) {
		return countersign.AccessSecret
	}
	return countersign.AccessPassword
}

// decideSecret compares a device that showed one of its secrets with its record. A
// secret that was good once is no guess.
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

// match finds the secret that was shown, nil if it is none of the device's. What we
// made is compared by its keyed hash, in microseconds; only what is not made by us and
// may be a password that a person chose is worth a run of argon2id. Either way a
// wrong one takes the time of a check.
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
		k.hasher.act(ctx)
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

// passwords returns those to try: what is good now, else the last one that was, so that
// a device learns that its password was stopped.
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

// hash is by what a secret that we made is known.
func (k *Secrets) hash(device string, secret []byte) ([]byte, error) {
	return k.keyed("connection secrets", []byte(device), secret)
}

// tried distinguishes wrong secrets and reveals nothing else about them: 32 bits under a
// key of ours fit too many secrets to find it out.
func (k *Secrets) tried(secret []byte) string {
	sum, err := k.keyed("tried secrets", secret)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(sum[:4])
}

// keyed is a hash that cannot be computed without the server's key.
func (k *Secrets) keyed(purpose string, parts ...[]byte) ([]byte, error) {
	key, err := k.Sealer.Derive(purpose)
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
