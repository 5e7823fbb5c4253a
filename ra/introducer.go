package ra

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/go-jose/go-jose/v4"
)

// introducer signs introductions, with a key that lives in memory only and is made
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
