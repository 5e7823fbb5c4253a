package sdk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/countersign-iot/countersign/api"
)

// maxIntroduction bounds the text of one: a few KiB with its certificates.
const maxIntroduction = 32 << 10

// Introduce asks the authority to introduce this device to a peer of its fleet for
// a purpose, for ttl; 0 leaves that to the authority. What comes back is shown to
// the peer, who checks it with Introduced.
func (i *Identity) Introduce(ctx context.Context, peer, purpose string, ttl time.Duration) (*api.SignedIntroduction, error) {
	in := api.NewIntroduction{Peer: peer, Purpose: purpose, TTLSeconds: int64(ttl / time.Second)}
	out, err := ask[api.SignedIntroduction](ctx, i.asker(), "/introductions", in)
	if err != nil {
		return nil, fmt.Errorf("ask to be introduced to %s: %w", peer, err)
	}
	return out, nil
}

// AccessToken asks for a token with which the device may connect where it cannot
// show its certificate, for ttl; 0 leaves that to the authority.
func (i *Identity) AccessToken(ctx context.Context, ttl time.Duration) (*api.IssuedAccessToken, error) {
	in := api.NewDeviceAccessToken{TTLSeconds: int64(ttl / time.Second)}
	out, err := ask[api.IssuedAccessToken](ctx, i.asker(), "/access-tokens", in)
	if err != nil {
		return nil, fmt.Errorf("ask for an access token: %w", err)
	}
	return out, nil
}

// asker is a device at an enrollment listener.
type asker struct {
	server string
	config *tls.Config
	prove  func(*http.Request) // adds the evidence of a device without a certificate; nil where config has one
}

func (i *Identity) asker() asker { return asker{server: i.server, config: i.TLSConfig()} }

// ask posts to the enrollment listener and reads the answer.
func ask[Res any](ctx context.Context, a asker, path string, body any) (*Res, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.server+api.Base+path, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if a.prove != nil {
		a.prove(req)
	}
	transport := &http.Transport{TLSClientConfig: a.config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: enrollTimeout}).Do(req)
	if err != nil {
		return nil, &Unreachable{err}
	}
	defer func() { _ = res.Body.Close() }()
	return decode[Res](res)
}

// Introduced reads an introduction (a JWS, RFC 7515) that a peer shows, or that this device was
// given, without a question to the authority: its signer's certificate must lead to the roots, its
// time must not be over, and this device must be one of the parties by the key
// that it has now. now is the device's clock.
func (i *Identity) Introduced(signed string, now time.Time) (*api.Introduction, error) {
	in, err := i.readIntroduction(signed, now)
	if err != nil {
		return nil, fmt.Errorf("couldn't accept the introduction: %w", err)
	}
	switch {
	case now.After(in.ExpiresAt):
		return nil, fmt.Errorf("the introduction ended at %s", in.ExpiresAt.Format(time.RFC3339))
	case now.Add(peerSkew).Before(in.IssuedAt):
		return nil, errors.New("the introduction is of the future")
	}
	if me := i.Certificate(); !slices.ContainsFunc(in.Parties[:], func(p api.Party) bool {
		return p.Device == i.device && slices.Contains(p.Keys, keyHash(me))
	}) {
		return nil, fmt.Errorf("the introduction is not about %s with the key that it has now", i.device)
	}
	return in, nil
}

func (i *Identity) readIntroduction(signed string, now time.Time) (*api.Introduction, error) {
	if len(signed) > maxIntroduction {
		return nil, errors.New("it is too long")
	}
	jws, err := jose.ParseSignedCompact(signed, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, err
	}
	head := jws.Signatures[0].Protected
	if kind, _ := head.ExtraHeaders[jose.HeaderType].(string); kind != api.IntroductionType {
		return nil, fmt.Errorf("its type is %.40q", kind)
	}
	chains, err := head.Certificates(x509.VerifyOptions{Roots: i.roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("its signer is not trusted: %w", err)
	}
	signer := chains[0][0]
	if len(signer.URIs) != 1 || signer.URIs[0].String() != api.IntroducerURI {
		return nil, errors.New("its signer may not introduce devices")
	}
	payload, err := jws.Verify(signer.PublicKey)
	if err != nil {
		return nil, err
	}
	var in api.Introduction
	return &in, json.Unmarshal(payload, &in)
}

// CheckPeer returns an error unless the other end of a TLS connection is the peer that the
// introduction names, by the key that it proved to hold. self is this device.
func CheckPeer(in *api.Introduction, self string, cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the peer has shown no certificate")
	}
	key := keyHash(cs.PeerCertificates[0])
	if !slices.ContainsFunc(in.Parties[:], func(p api.Party) bool { return p.Device != self && slices.Contains(p.Keys, key) }) {
		return errors.New("the peer is not the one that the introduction names")
	}
	return nil
}

func keyHash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
