package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/edge"
)

// identity is the server's own TLS certificate. Its key is in memory only and
// is made anew with each certificate.
type identity struct {
	ca    *ca.CA
	names atomic.Pointer[[]string]
	now   func() time.Time

	current atomic.Pointer[tls.Certificate]
	until   atomic.Int64 // Unix seconds of the current one's notAfter
}

func (i *identity) renew(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the server's key: %w", err)
	}
	chain, until, err := i.ca.IssueServer(ctx, ca.IssuingID, *i.names.Load(), &key.PublicKey)
	if err != nil {
		return fmt.Errorf("issue the server's certificate: %w", err)
	}
	i.current.Store(&tls.Certificate{Certificate: chain, PrivateKey: key})
	i.until.Store(until.Unix())
	return nil
}

// errNoIdentity ends handshakes while the server has no certificate to show.
var errNoIdentity = errors.New("the server has no certificate yet: its database cannot record one")

// get serves tls.Config.GetCertificate.
func (i *identity) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := i.current.Load(); c != nil {
		return c, nil
	}
	return nil, errNoIdentity
}

// due reports whether a third or less of the certificate's life is left.
func (i *identity) due() bool {
	return i.now().Add(ca.ServerValidity / 3).After(time.Unix(i.until.Load(), 0))
}

// tlsConfig of the enrollment listener: as at the edge, and one thing more.
func (i *identity) tlsConfig() *tls.Config {
	c := edge.TLSConfig(i.get)
	// strongSwan reads an answer in at most two records.
	c.DynamicRecordSizingDisabled = true
	return c
}

// clientTLS trusts the roots in a file, which what names; those of the system where there
// is none.
func clientTLS(what, path string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if path == "" {
		return c, nil
	}
	pem, err := os.ReadFile(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read %s: no certificate in %s", what, path)
	}
	return c, nil
}
