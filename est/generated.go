package est

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"

	"github.com/countersign-iot/countersign/cms"
)

// Generated is a certificate for a key that the server made.
type Generated struct {
	Certificate *x509.Certificate
	// Key is PKCS #8 in DER. It is nil where Sealed holds it encrypted.
	Key []byte
	// Sealed is the CMS message around the key, see [Generated.Open].
	Sealed []byte
}

// ServerKeyGen asks for a key and its certificate (RFC 7030, 4.4), on a token
// or on the client certificate of the TLS configuration. csr is PKCS #10 in DER
// with the wanted names; its own key and signature count for nothing.
func (c *Client) ServerKeyGen(ctx context.Context, label string, csr []byte, token string) (*Generated, error) {
	body, params, err := c.send(ctx, request{label: label, operation: "serverkeygen", csr: csr, token: token, want: mediaTypeMixed})
	if err != nil {
		return nil, fmt.Errorf("couldn't get a key: %w", err)
	}
	defer clear(body)
	g, err := parseGenerated(body, params["boundary"])
	if err != nil {
		return nil, fmt.Errorf("couldn't get a key: %w", err)
	}
	return g, nil
}

// Open decrypts the key into Key and returns the certificate that vouches for it,
// which the caller checks.
func (g *Generated) Open(as cms.Recipient) (signer *x509.Certificate, err error) {
	key, signer, err := cms.OpenKey(g.Sealed, as)
	if err != nil {
		return nil, err
	}
	if err := checkKey(key, g.Certificate); err != nil {
		clear(key)
		return nil, err
	}
	g.Key = key
	return signer, nil
}

// parseGenerated reads an answer of two parts, a key in one of two forms and
// certificates, in whatever order.
func parseGenerated(body []byte, boundary string) (*Generated, error) {
	if boundary == "" {
		return nil, errors.New("the answer names no boundary")
	}
	parts := multipart.NewReader(bytes.NewReader(body), boundary)
	var g Generated
	var certs []*x509.Certificate
	for {
		p, err := parts.NextRawPart() // NextPart would undo one transfer encoding and not others
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read answer: %w", err)
		}
		text, err := io.ReadAll(p) // bounded, as body is
		if err != nil {
			return nil, fmt.Errorf("read answer: %w", err)
		}
		der, err := decodeBody(text)
		if err != nil {
			return nil, fmt.Errorf("read answer: %w", err)
		}
		t, params, _ := mime.ParseMediaType(p.Header.Get("Content-Type"))
		switch key := g.Key != nil || g.Sealed != nil; {
		case t == mediaTypePKCS8 && !key:
			g.Key = der
		case t == mediaTypePKCS7 && params["smime-type"] == "server-generated-key" && !key:
			g.Sealed = der
		case t == mediaTypePKCS7 && certs == nil:
			if certs, err = parseCerts(der); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("the answer holds a part too many, %.60q", p.Header.Get("Content-Type"))
		}
	}
	return g.pair(certs)
}

// pair picks the certificate of the key; for an encrypted one the first, and Open
// checks it.
func (g Generated) pair(certs []*x509.Certificate) (*Generated, error) {
	switch {
	case g.Key == nil && g.Sealed == nil:
		return nil, errors.New("the answer holds no key")
	case len(certs) == 0:
		return nil, errors.New("the answer holds no certificate")
	case g.Sealed != nil:
		g.Certificate = certs[0]
		return &g, nil
	}
	for _, cert := range certs {
		if checkKey(g.Key, cert) == nil {
			g.Certificate = cert
			return &g, nil
		}
	}
	return nil, errors.New("the answer holds no certificate for its key")
}

func checkKey(pkcs8 []byte, cert *x509.Certificate) error {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return fmt.Errorf("the key of the answer: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return errors.New("the key of the answer cannot sign")
	}
	return checkPair(cert.Raw, signer.Public())
}
