package sdk

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	// stapleTimeout bounds one question to the OCSP responder.
	stapleTimeout = 5 * time.Second
	// maxStaple bounds its answer; one with a responder's certificate is near 1 KiB.
	maxStaple = 16 << 10
	// peerSkew is how far the clocks of two devices may lie apart.
	peerSkew = 5 * time.Minute
	// stapleRetry keeps a responder that does not answer from being asked at each handshake.
	stapleRetry = 30 * time.Second
)

// Peer is the other device of a direct connection.
type Peer struct {
	Device      string
	Fleet       string
	Certificate *x509.Certificate
}

// Peers says which devices may be at the other end of a direct connection.
type Peers struct {
	// Allow refuses a peer that is otherwise good: nil admits every device of the own
	// fleet. It is asked in the handshake, because a refused peer must not get a byte.
	Allow func(Peer) error
	Now   func() time.Time // nil: time.Now
}

// PeerConfig is for TLS from device to device with no server in the path, on both
// sides of it: TLS 1.3, each side shows its certificate with an OCSP answer
// stapled to it (RFC 8446, 4.4.2.1), and each side judges the other by what it was shown:
// a path to the roots, a device's name, and a fresh answer that says good. There is
// no host name to check; the device is the name. What a peer cannot show is a no.
func (i *Identity) PeerConfig(p Peers) *tls.Config {
	now := p.Now
	if now == nil {
		now = time.Now //nolint:forbidigo // the device's own clock, which crypto/tls goes by too
	}
	mine := func() *tls.Certificate {
		i.mu.RLock()
		c := tls.Certificate{Certificate: i.path, PrivateKey: i.key, Leaf: i.leaf}
		i.mu.RUnlock()
		c.OCSPStaple = i.staple.of(&c, now())
		return &c
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13, // earlier ones staple for servers only
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return mine(), nil },
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return mine(), nil },
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, //nolint:gosec // VerifyConnection checks the path, the name and the status instead
		SessionTicketsDisabled: true, // a resumed session would carry a status from before
		Time:                   now,
		VerifyConnection: func(cs tls.ConnectionState) error {
			peer, err := i.judge(cs, now())
			if err != nil {
				return err
			}
			if p.Allow != nil {
				return p.Allow(peer)
			}
			if _, fleet, err := deviceOf(i.Certificate()); err != nil || fleet != peer.Fleet {
				return fmt.Errorf("device %s is of fleet %s, not of ours", peer.Device, peer.Fleet)
			}
			return nil
		},
	}
}

// PeerOf is the device at the other end of a connection whose configuration is
// of PeerConfig. It fails before the handshake.
func PeerOf(cs tls.ConnectionState) (Peer, error) {
	if len(cs.PeerCertificates) == 0 {
		return Peer{}, errors.New("the peer has shown no certificate yet")
	}
	leaf := cs.PeerCertificates[0]
	device, fleet, err := deviceOf(leaf)
	return Peer{Device: device, Fleet: fleet, Certificate: leaf}, err
}

// judge is the check of what a peer showed.
func (i *Identity) judge(cs tls.ConnectionState, now time.Time) (Peer, error) {
	peer, err := PeerOf(cs)
	if err != nil {
		return peer, err
	}
	above := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		above.AddCert(c)
	}
	chains, err := peer.Certificate.Verify(x509.VerifyOptions{
		Roots: i.roots, Intermediates: above, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return peer, fmt.Errorf("the certificate of %s is not good: %w", peer.Device, err)
	}
	if len(chains[0]) < 2 {
		return peer, errors.New("a root is no device")
	}
	return peer, checkStaple(cs.OCSPResponse, peer.Certificate, chains[0][1], now)
}

// checkStaple wants an answer about the certificate that is signed by its issuer,
// or by a responder that the issuer named (RFC 6960, 4.2.2.2), is fresh, and
// says good.
func checkStaple(der []byte, leaf, issuer *x509.Certificate, now time.Time) error {
	if len(der) == 0 {
		return errors.New("the peer has stapled no OCSP answer: whether it was revoked is not known")
	}
	r, err := ocsp.ParseResponseForCert(der, leaf, issuer)
	if err != nil {
		return fmt.Errorf("the stapled OCSP answer is not good: %w", err)
	}
	if c := r.Certificate; c != nil && !bytes.Equal(c.Raw, issuer.Raw) &&
		(!slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) || now.After(c.NotAfter) || now.Add(peerSkew).Before(c.NotBefore)) {
		return errors.New("the stapled OCSP answer is signed by none that may")
	}
	switch {
	case r.Status == ocsp.Revoked:
		return fmt.Errorf("the certificate was revoked at %s", r.RevokedAt.Format(time.RFC3339))
	case r.Status != ocsp.Good:
		return errors.New("the OCSP responder does not know the certificate")
	case r.ThisUpdate.After(now.Add(peerSkew)):
		return errors.New("the stapled OCSP answer is of the future")
	case r.NextUpdate.IsZero() || now.After(r.NextUpdate):
		return errors.New("the stapled OCSP answer is too old")
	}
	return nil
}

// deviceOf reads whom a certificate is for from the URI that names the device.
func deviceOf(c *x509.Certificate) (device, fleet string, err error) {
	const urn = "countersign:device:"
	for _, u := range c.URIs {
		switch rest, ours := strings.CutPrefix(u.Opaque, urn); {
		case u.Scheme == "urn" && ours:
			fleet, device, _ = strings.Cut(rest, ":")
		case u.Scheme == "spiffe":
			fleet, device, _ = strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		}
		if device != "" && fleet != "" {
			return device, fleet, nil
		}
	}
	return "", "", errors.New("the certificate names no device")
}

// staple keeps the OCSP answer about the own certificate.
type staple struct {
	mu    sync.Mutex
	der   []byte
	about string // the certificate
	from  time.Time
	until time.Time
	tried time.Time
}

// of returns the answer to staple to c, asking for a new one when half of the time
// of the last is over. While the responder is away the last one serves to its
// end; without any the peer will say no, and say why.
func (s *staple) of(c *tls.Certificate, now time.Time) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	about := string(c.Certificate[0])
	if s.about != about {
		s.der, s.about, s.from, s.until, s.tried = nil, about, time.Time{}, time.Time{}, time.Time{}
	}
	due := now.After(s.from.Add(s.until.Sub(s.from) / 2))
	if due && (now.Sub(s.tried) >= stapleRetry || now.Before(s.tried)) {
		s.tried = now
		if der, r, err := fetchStaple(c); err == nil {
			s.der, s.from, s.until = der, r.ThisUpdate, r.NextUpdate
		}
	}
	if !now.Before(s.until) {
		return nil
	}
	return s.der
}

// fetchStaple asks the responder that the certificate names (RFC 5280, 4.2.2.1).
func fetchStaple(c *tls.Certificate) ([]byte, *ocsp.Response, error) {
	if len(c.Certificate) < 2 || len(c.Leaf.OCSPServer) == 0 {
		return nil, nil, errors.New("the certificate names no OCSP responder")
	}
	issuer, err := x509.ParseCertificate(c.Certificate[1])
	if err != nil {
		return nil, nil, err
	}
	question, err := ocsp.CreateRequest(c.Leaf, issuer, nil)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), stapleTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.Leaf.OCSPServer[0], bytes.NewReader(question))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/ocsp-request")
	res, err := (&http.Client{Timeout: stapleTimeout}).Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	der, err := io.ReadAll(io.LimitReader(res.Body, maxStaple))
	if err != nil {
		return nil, nil, err
	}
	r, err := ocsp.ParseResponseForCert(der, c.Leaf, issuer)
	return der, r, err
}
