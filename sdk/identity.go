package sdk

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/countersign-iot/countersign/est"
)

// enrollTimeout bounds one call to the authority, a slow radio link included.
const enrollTimeout = 60 * time.Second

// Enrollment says where and how a device gets its first certificate.
type Enrollment struct {
	Server string         // https URL of the authority's enrollment listener
	Roots  *x509.CertPool // what the device trusts the server by
	Fleet  string         // EST label; empty: the token's fleet
	Device string         // the device's id
	Token  string         // enrollment token or SAS token; may be empty with a Certificate
	Key    crypto.Signer  // nil: a P-256 key is made; it stays in this process
	// Certificate is shown to the server with the first request: a claim, the
	// maker's, or a registered self-signed one. Nil: none.
	Certificate *tls.Certificate
}

// Identity is a device's key and certificate, in memory. Its methods may be
// called from any goroutine.
type Identity struct {
	device string
	server string
	roots  *x509.CertPool
	fleet  string

	first  *tls.Certificate // shown until there is a leaf; may be nil
	staple staple           // for direct connections

	mu   sync.RWMutex
	key  crypto.Signer
	leaf *x509.Certificate
	// path is the leaf with the authorities between it and the root.
	path [][]byte
}

// Enroll makes a key, asks for a certificate over EST (RFC 7030, 4.2.1) and returns
// the device's identity. With the same Key and Token a lost answer can be asked
// for again.
func Enroll(ctx context.Context, e Enrollment) (*Identity, error) {
	i := &Identity{device: e.Device, server: e.Server, roots: e.Roots, fleet: e.Fleet, first: e.Certificate}
	key := e.Key
	if key == nil {
		var err error
		if key, err = newKey(); err != nil {
			return nil, err
		}
	}
	csr, err := requestFor(e.Device, key)
	if err != nil {
		return nil, err
	}
	client, done := i.client()
	defer done()
	leaf, err := client.SimpleEnroll(ctx, e.Fleet, csr, e.Token)
	if err != nil {
		return nil, fmt.Errorf("enroll %s: %w", e.Device, err)
	}
	chain, err := client.CACerts(ctx, e.Fleet)
	if err != nil {
		return nil, fmt.Errorf("fetch the path of %s: %w", e.Device, err)
	}
	return i, i.install(key, leaf, chain)
}

// Known is an identity that exists already: from a store, or given to the device
// on a factory line. It needs e.Key and no evidence; path is the certificate and
// the authorities between it and the root.
func Known(e Enrollment, path []*x509.Certificate) (*Identity, error) {
	if len(path) == 0 || e.Key == nil {
		return nil, fmt.Errorf("the identity of %s needs a certificate and its key", e.Device)
	}
	i := &Identity{device: e.Device, server: e.Server, roots: e.Roots, fleet: e.Fleet}
	return i, i.install(e.Key, path[0], path[1:])
}

// Renew makes a new key and asks for the next certificate with the current one
// (RFC 7030, 4.2.2). From then on the new certificate is used.
func (i *Identity) Renew(ctx context.Context) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	return i.RenewWith(ctx, key)
}

// RenewWith is Renew with a key of the caller's. With the same key a lost answer
// can be asked for again.
func (i *Identity) RenewWith(ctx context.Context, key crypto.Signer) error {
	csr, err := requestFor(i.Device(), key)
	if err != nil {
		return err
	}
	client, done := i.client()
	defer done()
	leaf, err := client.SimpleReenroll(ctx, i.fleet, csr)
	if err != nil {
		return fmt.Errorf("renew %s: %w", i.Device(), err)
	}
	i.mu.RLock()
	chain := i.path[1:]
	i.mu.RUnlock()
	var above []*x509.Certificate
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("read the path of %s: %w", i.Device(), err)
		}
		above = append(above, c)
	}
	return i.install(key, leaf, above)
}

// Device is the device's id.
func (i *Identity) Device() string { return i.device }

// Certificate is the current certificate.
func (i *Identity) Certificate() *x509.Certificate {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.leaf
}

// Key is the key of the current certificate.
func (i *Identity) Key() crypto.Signer {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.key
}

// Path is the certificate and the authorities between it and the root, DER.
func (i *Identity) Path() [][]byte {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.path
}

// TLSConfig is for any TLS client of the device. Each handshake shows the
// certificate that is current then.
func (i *Identity) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    i.roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			i.mu.RLock()
			defer i.mu.RUnlock()
			switch {
			case i.leaf == nil && i.first != nil:
				return i.first, nil
			case i.leaf == nil:
				return &tls.Certificate{}, nil
			}
			return &tls.Certificate{Certificate: i.path, PrivateKey: i.key, Leaf: i.leaf}, nil
		},
	}
}

// Copy is a second holder of the same key and certificate: what a thief has. It
// goes its own way from then on.
func (i *Identity) Copy() *Identity {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return &Identity{device: i.device, server: i.server, roots: i.roots, fleet: i.fleet, key: i.key, leaf: i.leaf, path: i.path}
}

func (i *Identity) install(key crypto.Signer, leaf *x509.Certificate, authorities []*x509.Certificate) error {
	want, ok := leaf.PublicKey.(interface{ Equal(x crypto.PublicKey) bool })
	if !ok || !want.Equal(key.Public()) {
		return fmt.Errorf("the certificate %x is not for this device's key", leaf.SerialNumber)
	}
	path := [][]byte{leaf.Raw}
	for _, a := range authorities {
		if !bytes.Equal(a.RawSubject, a.RawIssuer) { // the root need not be shown
			path = append(path, a.Raw)
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key, i.leaf, i.path = key, leaf, path
	return nil
}

func (i *Identity) client() (c *est.Client, done func()) {
	transport := &http.Transport{TLSClientConfig: i.TLSConfig(), ForceAttemptHTTP2: true}
	return &est.Client{BaseURL: i.server, HTTP: &http.Client{Transport: transport, Timeout: enrollTimeout}}, transport.CloseIdleConnections
}

func newKey() (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

func requestFor(device string, key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, key)
	if err != nil {
		return nil, fmt.Errorf("make a request for %s: %w", device, err)
	}
	return der, nil
}
