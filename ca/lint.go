package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	zl "github.com/zmap/zlint/v3/lint"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// SaveProfile lints a sample certificate of the profile with zlint's RFC 5280
// lints, then writes it. A profile that would make a bad certificate is refused.
func (c *issuance) SaveProfile(ctx context.Context, tx *store.Tx, p Profile) error {
	if err := p.check(); err != nil {
		return err
	}
	if err := c.lintSamples(p); err != nil {
		return err
	}
	spec, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode profile %s: %w", p.Name, err)
	}
	now := store.Micros(c.Now())
	_, err = tx.Exec(ctx, `INSERT INTO profile (name, spec, created_at, updated_at) VALUES ($1, $2, $3, $3)
		ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, updated_at = excluded.updated_at`, p.Name, string(spec), now)
	if err != nil {
		return fmt.Errorf("save profile %s: %w", p.Name, err)
	}
	return nil
}

// lintSources are the lints that bind device certificates. The CA/Browser
// Forum's rules are for the web.
var lintSources = zl.SourceList{zl.RFC5280, zl.RFC5480, zl.RFC5891, zl.RFC8813}

// Lint runs zlint's RFC lints over a certificate, DER, and returns one line for each that
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

// lintSamples signs, with a throw-away authority, a certificate of the profile for
// each type of key that it accepts and runs the lints over them.
func (c *issuance) lintSamples(p Profile) error {
	above, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a sample key: %w", err)
	}
	signer, err := newSigner(above)
	if err != nil {
		return fmt.Errorf("make a sample key: %w", err)
	}
	kinds := p.Keys
	if len(kinds) == 0 {
		kinds = keyTypes
	}
	for _, kind := range kinds {
		pub, err := sampleKey(kind)
		if err != nil {
			return fmt.Errorf("make a sample key: %w", err)
		}
		failed, err := c.lintSample(p, signer, pub)
		if err != nil {
			return fmt.Errorf("make a sample of profile %s: %w", p.Name, err)
		}
		if len(failed) > 0 {
			return countersign.Errorf(countersign.BadRequest, "profile %s makes %s certificates that fail lint: %s", p.Name, kind, strings.Join(failed, "; ")).
				WithNext("correct the profile, or name the key types that it is for")
		}
	}
	return nil
}

func (c *issuance) lintSample(p Profile, s *signer, pub crypto.PublicKey) ([]string, error) {
	above, err := encodeKey(s.Public())
	if err != nil {
		return nil, err
	}
	issuer := authorityTemplate(pkix.Name{CommonName: "Sample"}, c.Now().UTC(), maxValidity+DefaultIssuingValidity)
	issuer.SubjectKeyId = above.id()
	if issuer.RawSubject, err = encodeSubject(issuer); err != nil {
		return nil, err
	}
	a := &authority{Authority: countersign.Authority{ID: "sample", Certificate: issuer}, status: c.statusOf("sample")}
	tbs, err := c.deviceTemplate(a, Order{Profile: p, Device: "sample-device", PublicKey: pub, Fleet: countersign.Fleet{Name: "sample"}})
	if err != nil {
		return nil, err
	}
	key, err := encodeKey(pub)
	if err != nil {
		return nil, err
	}
	tbs.SubjectKeyId = key.id()
	tbs.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 8*serialOctets-2) // the size of a real one
	der, err := s.certify(tbs, issuer, pub, key)
	if err != nil {
		return nil, err
	}
	return Lint(der)
}

// sampleKey returns a public key of a type. No one has its private half: making an
// RSA key would take longer than all the rest.
func sampleKey(kind string) (crypto.PublicKey, error) {
	switch kind {
	case "RSA":
		b := make([]byte, minRSA/8)
		if _, err := rand.Read(b); err != nil {
			return nil, err
		}
		b[0] |= 0x80
		b[len(b)-1] |= 1
		return &rsa.PublicKey{N: new(big.Int).SetBytes(b), E: minExponent}, nil
	case "Ed25519":
		pub, _, err := ed25519.GenerateKey(rand.Reader)
		return pub, err
	}
	curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[kind]
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, err
	}
	return &key.PublicKey, nil
}
