package est

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/countersign-iot/countersign/cms"
	"github.com/countersign-iot/countersign/pkcs10"
)

const (
	// maxAnswer bounds an answer: the largest message in base64 with line breaks.
	maxAnswer = cms.MaxSize * 3 / 2
	// maxSentence bounds what is kept of a refusal's text.
	maxSentence = 1 << 10
)

// Client speaks EST to one server. It may be used by many goroutines at once,
// and keeps connections alive.
type Client struct {
	// BaseURL is the server without path: https://host[:port].
	BaseURL string
	// HTTP must be set: its TLS configuration holds the roots to trust the server
	// by and, to reenroll, the current certificate, and its timeout bounds a call.
	HTTP *http.Client
}

// Error is the server's refusal.
type Error struct {
	Status     int           // HTTP; 202 means that the request awaits approval
	Message    string        // the text of the answer on one line, as the server wrote it
	RetryAfter time.Duration // 0 if the server named none
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("EST server answered %d %s", e.Status, http.StatusText(e.Status))
	}
	return fmt.Sprintf("EST server answered %d: %s", e.Status, e.Message)
}

// StatusOf returns the HTTP status of a refusal, 0 if err is none.
func StatusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}

// CACerts fetches the certificates of the authority (RFC 7030, 4.1) in the order
// of the answer. They are as good as the trust in the TLS server was.
func (c *Client) CACerts(ctx context.Context, label string) ([]*x509.Certificate, error) {
	body, err := c.do(ctx, request{label: label, operation: "cacerts", want: mediaTypePKCS7})
	if err != nil {
		return nil, fmt.Errorf("couldn't get CA certificates: %w", err)
	}
	certs, err := parseCerts(body)
	if err != nil {
		return nil, fmt.Errorf("couldn't get CA certificates: %w", err)
	}
	return certs, nil
}

// CSRAttrs fetches what the server wants in a request (RFC 7030, 4.5); empty if
// it wants nothing special.
func (c *Client) CSRAttrs(ctx context.Context, label string) (CSRAttrs, error) {
	body, err := c.do(ctx, request{label: label, operation: "csrattrs", want: mediaTypeCSRAttrs})
	if status := StatusOf(err); status == http.StatusNoContent || status == http.StatusNotFound {
		return nil, nil // RFC 7030, 4.5.2: both say that there are none
	}
	if err != nil {
		return nil, fmt.Errorf("couldn't get CSR attributes: %w", err)
	}
	return parseCSRAttrs(body)
}

// SimpleEnroll asks for a first certificate on a token, or on the client
// certificate of the TLS configuration if token is empty (RFC 7030, 4.2.1). csr
// is PKCS #10 in DER.
func (c *Client) SimpleEnroll(ctx context.Context, label string, csr []byte, token string) (*x509.Certificate, error) {
	return c.enroll(ctx, request{label: label, operation: "simpleenroll", csr: csr, token: token})
}

// SimpleReenroll asks for the next certificate on the current one, which the TLS
// configuration must hold (RFC 7030, 4.2.2). csr is PKCS #10 in DER.
func (c *Client) SimpleReenroll(ctx context.Context, label string, csr []byte) (*x509.Certificate, error) {
	return c.enroll(ctx, request{label: label, operation: "simplereenroll", csr: csr})
}

type request struct {
	label, operation string
	csr              []byte // nil: GET
	token            string
	want             string // media type of the answer
}

func (c *Client) enroll(ctx context.Context, req request) (*x509.Certificate, error) {
	req.want = mediaTypePKCS7
	body, err := c.do(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("couldn't enroll: %w", err)
	}
	certs, err := parseCerts(body)
	if err != nil {
		return nil, fmt.Errorf("couldn't enroll: %w", err)
	}
	csr, err := pkcs10.Parse(req.csr)
	if err != nil {
		return nil, fmt.Errorf("couldn't enroll: %w", err)
	}
	for _, cert := range certs { // some servers send the path too
		if bytes.Equal(cert.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo) {
			return cert, nil
		}
	}
	return nil, errors.New("couldn't enroll: the answer holds no certificate for the key of the request")
}

// do sends one request and returns the decoded body of a 200 answer.
func (c *Client) do(ctx context.Context, req request) ([]byte, error) {
	body, _, err := c.send(ctx, req)
	if err != nil {
		return nil, err
	}
	return decodeBody(body)
}

// send sends one request and returns the body of a 200 answer as it is, with
// the parameters of its media type.
func (c *Client) send(ctx context.Context, req request) ([]byte, map[string]string, error) {
	r, err := c.newRequest(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	res, err := c.HTTP.Do(r)
	if err != nil {
		return nil, nil, err
	}
	// Reading to the end lets the connection serve again.
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, nil, refusal(res, body)
	}
	if len(body) > maxAnswer {
		return nil, nil, fmt.Errorf("the answer is over %d octets", maxAnswer)
	}
	t, params, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil || t != req.want {
		return nil, nil, fmt.Errorf("the answer is %.60q, not %s: is this an EST server?", res.Header.Get("Content-Type"), req.want)
	}
	return body, params, nil
}

func (c *Client) newRequest(ctx context.Context, req request) (*http.Request, error) {
	url := strings.TrimSuffix(c.BaseURL, "/") + pathPrefix
	if req.label != "" {
		url += req.label + "/"
	}
	url += req.operation
	if req.csr == nil {
		return http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	}
	body := base64.StdEncoding.AppendEncode(nil, req.csr)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", mediaTypePKCS10)
	r.Header.Set("Content-Transfer-Encoding", "base64") // for servers older than RFC 8951
	if req.token != "" {
		r.SetBasicAuth("", req.token)
	}
	return r, nil
}

func refusal(res *http.Response, body []byte) *Error {
	e := &Error{Status: res.StatusCode}
	if t, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); t == "text/plain" {
		e.Message = oneLine(body[:min(len(body), maxSentence)])
	}
	if reason := res.Header.Get(reasonHeader); e.Message == "" {
		e.Message = oneLine([]byte(reason[:min(len(reason), maxSentence)]))
	}
	wait := res.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(wait, 10, 31); err == nil {
		e.RetryAfter = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(wait); err == nil {
		// Against the server's clock: ours may be wrong before a first certificate.
		if now, err := http.ParseTime(res.Header.Get("Date")); err == nil {
			e.RetryAfter = max(0, at.Sub(now))
		}
	}
	return e
}

// oneLine drops what could play tricks on a terminal or in a log.
func oneLine(text []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsPrint(r) && r != unicode.ReplacementChar:
			return r
		}
		return -1
	}, string(text)))
}

func parseCerts(der []byte) ([]*x509.Certificate, error) {
	list, err := cms.ParseCertsOnly(der)
	if err != nil {
		return nil, err
	}
	certs := make([]*x509.Certificate, len(list))
	for i, raw := range list {
		if certs[i], err = x509.ParseCertificate(raw); err != nil {
			return nil, fmt.Errorf("certificate %d of the answer: %w", i+1, err)
		}
	}
	return certs, nil
}
