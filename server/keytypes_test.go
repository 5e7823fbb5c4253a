package server_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"io"
	"net/http"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
)

// TestAuthoritiesOfEachKeyTypeServe has devices with keys of several types live below
// authorities with keys of each type: they enroll, connect and renew, and OCSP and the CRL
// answer for them, before and after their revocation.
func TestAuthoritiesOfEachKeyTypeServe(t *testing.T) {
	devices := map[string]func() (crypto.Signer, error){
		"p256": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
		"p384": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
		"rsa":  func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
	}
	for key, signs := range map[string]x509.SignatureAlgorithm{
		"P-256": x509.ECDSAWithSHA256, "P-384": x509.ECDSAWithSHA384, "P-521": x509.ECDSAWithSHA512, "RSA-2048": x509.SHA256WithRSA, "RSA-3072": x509.SHA256WithRSA,
	} {
		t.Run(key, func(t *testing.T) {
			s := countersigntest.Start(t, countersigntest.Options{Founding: &ca.Plan{Name: "Test", RootKey: key, IssuingKey: key}})
			for name, make := range devices {
				signer, err := make()
				if err != nil {
					t.Fatal(err)
				}
				id, err := sdk.Enroll(t.Context(), sdk.Enrollment{
					Server: s.Endpoints().Enroll, Roots: s.Roots, Device: name, Token: s.Token(t, api.NewToken{Device: name}), Key: signer,
				})
				if err != nil {
					t.Errorf("enroll %s: %v", name, err)
					continue
				}
				client{id: name, identity: id}.open(t, s)
				if err := id.Renew(t.Context()); err != nil {
					t.Errorf("renew %s: %v", name, err)
				}
				answers(t, s, id, signs)
			}
		})
	}
}

// answers wants OCSP and the CRL to answer for a device, whose certificate is signed with signs.
func answers(t *testing.T, s *countersigntest.Server, id *sdk.Identity, signs x509.SignatureAlgorithm) {
	t.Helper()
	leaf := id.Certificate()
	issuer, err := x509.ParseCertificate(id.Path()[1])
	if err != nil {
		t.Fatal(err)
	}
	below := x509.NewCertPool()
	below.AddCert(issuer)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: s.Roots, Intermediates: below, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil || leaf.SignatureAlgorithm != signs {
		t.Errorf("%s: signed with %v, %v, want %v", id.Device(), leaf.SignatureAlgorithm, err, signs)
	}
	if got := askOCSP(t, leaf, issuer); got.Status != ocsp.Good {
		t.Errorf("OCSP for %s: got %d, want good", id.Device(), got.Status)
	}
	if _, err := s.Admin.Revoke(t.Context(), id.Device(), api.Revoke{Reason: "keyCompromise"}); err != nil {
		t.Fatal(err)
	}
	if got := askOCSP(t, leaf, issuer); got.Status != ocsp.Revoked || got.RevocationReason != ocsp.KeyCompromise {
		t.Errorf("OCSP for %s after its revocation: got %d, reason %d, want revoked for a stolen key", id.Device(), got.Status, got.RevocationReason)
	}
	for began := time.Now(); !isListed(t, leaf, issuer); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("%s is not on the CRL", id.Device())
		}
	}
}

func askOCSP(t *testing.T, leaf, issuer *x509.Certificate) *ocsp.Response {
	t.Helper()
	question, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(leaf.OCSPServer[0], "application/ocsp-request", bytes.NewReader(question))
	if err != nil {
		t.Fatal(err)
	}
	r, err := ocsp.ParseResponseForCert(body(t, res), leaf, issuer) // it checks the signature
	if err != nil {
		t.Fatalf("OCSP: %v", err)
	}
	return r
}

// isListed reads the CRL that the certificate names.
func isListed(t *testing.T, leaf, issuer *x509.Certificate) bool {
	t.Helper()
	res, err := http.Get(leaf.CRLDistributionPoints[0])
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(body(t, res))
	if err == nil {
		err = list.CheckSignatureFrom(issuer)
	}
	if err != nil {
		t.Fatalf("CRL: %v", err)
	}
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			return true
		}
	}
	return false
}

func body(t *testing.T, res *http.Response) []byte {
	t.Helper()
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
