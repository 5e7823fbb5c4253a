package command

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/spf13/cobra"
)

// maxInspectCerts bounds what one file prints.
const maxInspectCerts = 100

// inspected is a certificate as inspect shows it.
type inspected struct {
	Subject      string    `json:"subject"`
	Issuer       string    `json:"issuer"`
	Serial       string    `json:"serial"`
	NotBefore    time.Time `json:"not_before"`
	NotAfter     time.Time `json:"not_after"`
	Key          string    `json:"key"`
	Signature    string    `json:"signature"`
	CA           bool      `json:"ca"`
	Names        []string  `json:"names,omitempty"`
	KeyUsage     []string  `json:"key_usage,omitempty"`
	ExtKeyUsage  []string  `json:"ext_key_usage,omitempty"`
	SubjectKeyID string    `json:"subject_key_id,omitempty"`
	IssuerKeyID  string    `json:"authority_key_id,omitempty"`
	CRL          []string  `json:"crl,omitempty"`
	OCSP         []string  `json:"ocsp,omitempty"`
	IssuerURL    []string  `json:"issuer_url,omitempty"`
	Fingerprint  string    `json:"fingerprint"`
	KeyHash      string    `json:"key_hash"`
}

func certInspect(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Short: "Explain the certificates in a PEM or DER file; - is standard input",
		Example: "  countersign cert inspect device.pem",
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := env.readInput(args[0])
			if err != nil {
				return err
			}
			certs, err := parseCertificates(b)
			if err != nil {
				return fmt.Errorf("couldn't read %s: %w", args[0], err)
			}
			return inspect(env, certs)
		},
	}
}

func inspect(env *Env, certs []*x509.Certificate) error {
	v := inspectView(env)
	all := make([]inspected, len(certs))
	for i, c := range certs {
		all[i] = inspectOne(c)
	}
	if env.output != formatTable {
		return list(env, itemsOf(all), 0, v)
	}
	for i, c := range all {
		if i > 0 {
			env.stdout().linef("")
		}
		if err := show(env, c, v); err != nil {
			return err
		}
	}
	return nil
}

func inspectView(env *Env) view[inspected] {
	when := func(t time.Time) string {
		if t.Year() == 9999 { // RFC 5280, 4.1.2.5
			return "none (no well-defined expiration)"
		}
		word := "in " + span(t.Sub(env.Now()))
		if t.Before(env.Now()) {
			word = env.ago(t)
		}
		return t.UTC().Format(time.RFC3339) + " (" + word + ")"
	}
	return viewOf(env, "SUBJECT subject, ISSUER issuer, SERIAL hex:serial, NOT BEFORE, NOT AFTER, NAMES list:names, KEY key, SIGNATURE signature, "+
		"CA yes|no:ca, KEY USAGE list:key_usage, EXT KEY USAGE list:ext_key_usage, SUBJECT KEY ID hex:subject_key_id, "+
		"AUTHORITY KEY ID hex:authority_key_id, CRL list:crl, OCSP list:ocsp, ISSUER URL list:issuer_url, SHA-256 hex:fingerprint, KEY SHA-256 hex:key_hash",
		func(c inspected) string { return when(c.NotBefore) }, func(c inspected) string { return when(c.NotAfter) },
	).named(func(c inspected) string { return c.Serial })
}

// parseCertificates reads all certificates of a PEM text, or one DER certificate.
func parseCertificates(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	rest := b
	for {
		block, more := pem.Decode(rest)
		if block == nil {
			break
		}
		rest = more
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, c); len(certs) > maxInspectCerts {
			return nil, fmt.Errorf("more than %d certificates", maxInspectCerts)
		}
	}
	if len(certs) > 0 {
		return certs, nil
	}
	c, err := x509.ParseCertificate(b)
	if err != nil && isRequest(b) {
		return nil, errors.New("it holds a certification request, not a certificate: see countersign enroll explain --csr")
	}
	if err != nil {
		return nil, errors.New("it holds no certificate, neither PEM nor DER")
	}
	return []*x509.Certificate{c}, nil
}

func inspectOne(c *x509.Certificate) inspected {
	whole, key := sha256.Sum256(c.Raw), sha256.Sum256(c.RawSubjectPublicKeyInfo)
	i := inspected{
		Subject:      c.Subject.String(),
		Issuer:       c.Issuer.String(),
		Serial:       string(countersign.SerialOf(c.SerialNumber)),
		NotBefore:    c.NotBefore.UTC(),
		NotAfter:     c.NotAfter.UTC(),
		Key:          keyText(c),
		Signature:    c.SignatureAlgorithm.String(),
		CA:           c.IsCA,
		KeyUsage:     keyUsages(c.KeyUsage),
		SubjectKeyID: hex.EncodeToString(c.SubjectKeyId),
		IssuerKeyID:  hex.EncodeToString(c.AuthorityKeyId),
		CRL:          c.CRLDistributionPoints,
		OCSP:         c.OCSPServer,
		IssuerURL:    c.IssuingCertificateURL,
		Fingerprint:  hex.EncodeToString(whole[:]),
		KeyHash:      hex.EncodeToString(key[:]),
	}
	i.Names = slices.Concat(prefixed("URI:", c.URIs), prefixed("DNS:", c.DNSNames), prefixed("IP:", c.IPAddresses), prefixed("email:", c.EmailAddresses))
	i.ExtKeyUsage = append(prefixed("", c.ExtKeyUsage), prefixed("", c.UnknownExtKeyUsage)...)
	return i
}

// prefixed writes each item of a list with a prefix.
func prefixed[T any](prefix string, items []T) (all []string) {
	for _, item := range items {
		all = append(all, prefix+fmt.Sprint(item))
	}
	return all
}

func keyText(c *x509.Certificate) string {
	switch k := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return c.PublicKeyAlgorithm.String()
}

// keyUsages names the bits (RFC 5280, 4.2.1.3).
func keyUsages(u x509.KeyUsage) (names []string) {
	for bit, name := range []string{
		"digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement",
		"keyCertSign", "cRLSign", "encipherOnly", "decipherOnly",
	} {
		if u&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	return names
}
