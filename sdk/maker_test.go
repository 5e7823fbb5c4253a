package sdk_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/test/kit"
)

// maker is the CA of a manufacturer.
type maker struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
}

func newMaker(t *testing.T) *maker {
	t.Helper()
	key := kit.Key(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Acme CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der := kit.Must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))
	return &maker{key, kit.Must(x509.ParseCertificate(der)), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

// list is a revocation list of the maker.
func (m *maker) list(t *testing.T) []byte {
	t.Helper()
	return kit.Must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
	}, m.cert, m.key))
}

// trusting is a transport that trusts the server.
func (w *whole) trusting() http.RoundTripper {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.Roots, MinVersion: tls.VersionTLS12}}
}

func parsePath(id *sdk.Identity) (path []*x509.Certificate, err error) {
	for _, der := range id.Path() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		path = append(path, c)
	}
	return path, nil
}
