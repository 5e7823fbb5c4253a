package status

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	// maxOCSPResponse bounds a response, in octets: one signature, one certificate and a
	// few hundred octets for each certificate in the request.
	maxOCSPResponse = 64 << 10
	// maxCRL bounds a CRL, in octets. A million entries take 49 MB.
	maxCRL = 128 << 20
	// clockSkew is how far a responder's clock may be ahead of the client's.
	clockSkew = 5 * time.Minute
	// nonceSize is the length, in octets, that RFC 9654, 2.1 requires of clients.
	nonceSize = 32
)

// Client requests the status of certificates. It is safe for concurrent use.
type Client struct {
	HTTP *http.Client // must be set, with a timeout
	Now  func() time.Time
}

// OCSP requests the status of cert, which issuer issued, from the responder at url. It
// verifies that the response is signed by issuer or by a responder that issuer delegated
// (RFC 6960, 4.2.2.2), is about this certificate, is current, and repeats the nonce of this
// request. The statuses good, revoked and unknown are no errors.
func (c *Client) OCSP(ctx context.Context, url string, cert, issuer *x509.Certificate) (*ocsp.Response, error) {
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce) // never fails
	req, err := EncodeOCSPRequest(cert, issuer, nonce)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(req))
	if err != nil {
		return nil, fmt.Errorf("couldn't query OCSP responder: %w", err)
	}
	r.Header.Set("Content-Type", mediaTypeOCSPRequest)
	der, err := c.fetch(r, maxOCSPResponse)
	if err != nil {
		return nil, fmt.Errorf("couldn't query OCSP responder: %w", err)
	}
	res, err := ocsp.ParseResponseForCert(der, cert, issuer)
	if err != nil {
		return nil, fmt.Errorf("couldn't verify OCSP response: %w", err)
	}
	if err := c.check(res, nonce); err != nil {
		return nil, fmt.Errorf("couldn't verify OCSP response: %w", err)
	}
	return res, nil
}

// check makes the checks that the library leaves to its caller.
func (c *Client) check(res *ocsp.Response, nonce []byte) error {
	now := c.Now()
	if d := res.Certificate; d != nil {
		if !slices.Contains(d.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
			return errors.New("its signer may not sign OCSP responses")
		}
		if now.Before(d.NotBefore.Add(-clockSkew)) || now.After(d.NotAfter) {
			return errors.New("its signer's certificate is not valid now")
		}
	}
	if res.ThisUpdate.After(now.Add(clockSkew)) || !res.NextUpdate.IsZero() && res.NextUpdate.Before(now) {
		return errors.New("it is not current")
	}
	got, err := responseNonce(res.TBSResponseData)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, nonce) {
		return errors.New("it does not repeat the nonce")
	}
	return nil
}

// CRL fetches a CRL and verifies that issuer signed it and that it is current.
func (c *Client) CRL(ctx context.Context, url string, issuer *x509.Certificate) (*x509.RevocationList, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("couldn't get CRL: %w", err)
	}
	der, err := c.fetch(r, maxCRL)
	if err != nil {
		return nil, fmt.Errorf("couldn't get CRL: %w", err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse CRL: %w", err)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return nil, fmt.Errorf("couldn't verify CRL: %w", err)
	}
	if now := c.Now(); list.ThisUpdate.After(now.Add(clockSkew)) || list.NextUpdate.Before(now) {
		return nil, errors.New("couldn't verify CRL: it is not current")
	}
	return list, nil
}

func (c *Client) fetch(r *http.Request, limit int64) ([]byte, error) {
	res, err := c.HTTP.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answered %d %s", res.StatusCode, http.StatusText(res.StatusCode))
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("the answer is over %d octets", limit)
	}
	return body, nil
}
