package ra

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
	"github.com/go-jose/go-jose/v4"
)

const (
	// DefaultIntroduction is how long an introduction is good if none is given: the
	// devices meet now.
	DefaultIntroduction = 5 * time.Minute
	// MinIntroduction is the least: the devices still have to meet.
	MinIntroduction = 10 * time.Second
	// MaxIntroduction is the most. An introduction cannot be revoked, so it must expire.
	MaxIntroduction = time.Hour
	// maxPartyKeys bounds the keys of one party: two during an overlap, and some.
	maxPartyKeys = 8
	// maxPurpose bounds the words of what it is for.
	maxPurpose = 128
)

// IntroduceBoth is for operators: the devices may be of two fleets.
func (d *Authority) IntroduceBoth(ctx context.Context, i api.NewIntroduction, by By) (api.SignedIntroduction, error) {
	return d.makeIntroduction(ctx, i, by, false)
}

func (d *Authority) makeIntroduction(ctx context.Context, i api.NewIntroduction, by By, oneFleet bool) (out api.SignedIntroduction, err error) {
	bad := func(format string, args ...any) (api.SignedIntroduction, error) {
		return out, countersign.Errorf(countersign.BadRequest, format, args...)
	}
	ttl := cmp.Or(time.Duration(i.TTLSeconds)*time.Second, DefaultIntroduction)
	switch {
	case ttl < MinIntroduction || ttl > MaxIntroduction:
		return bad("a life of %s is not between %s and %s", ttl, MinIntroduction, MaxIntroduction)
	case i.Purpose == "" || len(i.Purpose) > maxPurpose || strings.ContainsFunc(i.Purpose, func(r rune) bool { return !unicode.IsPrint(r) }):
		return bad("the purpose is not 1 to %d octets of printable text", maxPurpose)
	case i.Device == i.Peer:
		return bad("a device knows itself")
	}
	now := d.Now().UTC().Truncate(time.Second)
	out.Introduction = api.Introduction{ID: strings.ToLower(rand.Text()), Purpose: i.Purpose, IssuedAt: now, ExpiresAt: now.Add(ttl)}
	if out.Parties[0], err = d.party(ctx, i.Device); err != nil {
		return out, err
	}
	out.Parties[1], err = d.party(ctx, i.Peer)
	// A device learns nothing of other fleets, not even what there is.
	code := countersign.CodeOf(err)
	known := code == "" || code == countersign.NotFound || code == countersign.Conflict
	if fleet := out.Parties[0].Fleet; oneFleet && known && out.Parties[1].Fleet != fleet {
		return out, countersign.Errorf(countersign.NotFound, "there is no device %.140q in fleet %s", i.Peer, fleet).
			WithNext("ask an operator to introduce them")
	}
	if err != nil {
		return out, err
	}
	if out.Signed, err = d.introducer.sign(ctx, d, out.Introduction); err != nil {
		return out, err
	}
	e := by.Event(countersign.IntroductionIssued)
	e.Device, e.Fleet = i.Device, out.Parties[0].Fleet
	e.Data = map[string]string{
		"introduction": out.ID, "peer": i.Peer, "purpose": i.Purpose, "expires_at": out.ExpiresAt.Format(time.RFC3339),
	}
	return out, d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return d.Events.Append(ctx, tx, e) })
}

// party is a device with the keys that it can show now.
func (d *Authority) party(ctx context.Context, id string) (api.Party, error) {
	dev, err := d.Registry.Device(ctx, d.DB, id)
	if err != nil {
		return api.Party{}, err
	}
	p := api.Party{Device: dev.ID, Fleet: dev.Fleet}
	certs, err := ca.DeviceCertificates(ctx, d.DB, id)
	if err != nil {
		return p, err
	}
	refs := make([]countersign.CertRef, 0, len(certs))
	for i := range certs {
		refs = append(refs, certs[i].Ref())
	}
	good, err := d.Access.Good(ctx, d.DB, refs, access.Connecting)
	if err != nil {
		return p, err
	}
	for i := range certs {
		if c := &certs[i]; good[c.Ref()] && len(p.Keys) < maxPartyKeys {
			p.Keys = append(p.Keys, c.KeyHash)
		}
	}
	if dev.State != countersign.DeviceActive || len(p.Keys) == 0 {
		return p, countersign.Errorf(countersign.Conflict, "device %s has no identity that it could show", id).WithNext("look at the certificates of the device")
	}
	return p, nil
}

// introducer signs introductions, with a key that is in memory only and is made
// anew with each certificate.
type introducer struct {
	mu     sync.Mutex
	signer jose.Signer
	until  time.Time
}

func (n *introducer) sign(ctx context.Context, d *Authority, i api.Introduction) (string, error) {
	s, err := n.ready(ctx, d, i.ExpiresAt)
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(i)
	if err != nil {
		return "", fmt.Errorf("encode an introduction: %w", err)
	}
	signed, err := s.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign an introduction: %w", err)
	}
	return signed.CompactSerialize()
}

// ready returns a signer whose certificate outlives the introduction.
func (n *introducer) ready(ctx context.Context, d *Authority, until time.Time) (jose.Signer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.signer != nil && until.Before(n.until) && d.Now().Add(ca.ServerValidity/3).Before(n.until) {
		return n.signer, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an introducer's key: %w", err)
	}
	chain, notAfter, err := d.CA.IssueIntroducer(ctx, ca.IssuingID, key.Public())
	if err != nil {
		return nil, err
	}
	path := make([]string, 0, len(chain))
	for _, der := range chain {
		path = append(path, base64.StdEncoding.EncodeToString(der))
	}
	options := (&jose.SignerOptions{}).WithType(api.IntroductionType).WithHeader("x5c", path)
	if n.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, options); err != nil {
		return nil, fmt.Errorf("make an introducer: %w", err)
	}
	n.until = notAfter
	return n.signer, nil
}
