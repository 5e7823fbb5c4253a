package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strings"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	zl "github.com/zmap/zlint/v3/lint"

	"github.com/countersign-iot/countersign"
)

// lint is the cheap check of every certificate before it is signed: what the
// profile's lint cannot know because it depends on the order.
func lint(tbs, issuer *x509.Certificate) error {
	switch {
	case !tbs.NotAfter.After(tbs.NotBefore):
		return fmt.Errorf("plan: NotAfter %v is not after NotBefore %v", tbs.NotAfter, tbs.NotBefore)
	case tbs.NotBefore.Before(issuer.NotBefore):
		return fmt.Errorf("plan: NotBefore %v is before the issuer's", tbs.NotBefore)
	case tbs.IsCA || tbs.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return fmt.Errorf("plan: an end-entity certificate may not sign others")
	case len(tbs.SubjectKeyId) == 0 || len(issuer.SubjectKeyId) == 0:
		return fmt.Errorf("plan: key identifiers are missing")
	case tbs.Subject.CommonName == "" && len(tbs.URIs)+len(tbs.DNSNames)+len(tbs.IPAddresses) == 0:
		return fmt.Errorf("plan: the certificate names nobody")
	}
	return nil
}

// lintSources are the lints that bind device certificates. The CA/Browser
// Forum's rules are for the web.
var lintSources = zl.SourceList{zl.RFC5280, zl.RFC5480, zl.RFC5891, zl.RFC8813}

// Lint runs zlint's RFC lints over a certificate, DER, and gives one line for each that
// failed with an error or a warning.
func Lint(der []byte) ([]string, error) {
	cert, err := zx509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse for lint: %w", err)
	}
	reg, err := zl.GlobalRegistry().Filter(zl.FilterOptions{IncludeSources: lintSources})
	if err != nil {
		return nil, fmt.Errorf("choose lints: %w", err)
	}
	var failed []string
	for name, r := range zlint.LintCertificateEx(cert, reg).Results {
		if r.Status < zl.Warn {
			continue
		}
		failed = append(failed, fmt.Sprintf("%s: %s %s", name, r.Status, r.Details))
	}
	slices.Sort(failed)
	return failed, nil
}

// lintSample signs a certificate of the profile with a throw-away authority and
// runs the lints over it.
func (c *CA) lintSample(p Profile) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a sample key: %w", err)
	}
	now := c.Now().UTC()
	tmpl := authorityTemplate("Sample", now, maxValidity+issuingValidity)
	if tmpl.SubjectKeyId, err = keyID(&key.PublicKey); err != nil {
		return err
	}
	a := &authority{Authority: countersign.Authority{ID: "sample", Certificate: tmpl}, signer: key}
	tbs, err := c.deviceTemplate(a, Order{
		Profile: p, Device: "sample-device", PublicKey: &key.PublicKey,
		Fleet: countersign.Fleet{Name: "sample"},
	})
	if err != nil {
		return err
	}
	tbs.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 8*serialOctets-2) // the size of a real one
	der, err := x509.CreateCertificate(rand.Reader, tbs, tmpl, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("sign a sample of profile %s: %w", p.Name, err)
	}
	failed, err := Lint(der)
	if err != nil {
		return err
	}
	if len(failed) > 0 {
		return countersign.Errorf(countersign.BadRequest, "profile %s makes certificates that fail lint: %s", p.Name, strings.Join(failed, "; ")).
			WithNext("correct the profile")
	}
	return nil
}
