package est

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/cms"
	"github.com/countersign-iot/countersign/pkcs10"
)

const (
	mediaTypePKCS10    = "application/pkcs10"
	mediaTypeCertsOnly = mediaTypePKCS7 + "; smime-type=certs-only"
)

// maxToken bounds what is passed on as a token. Ours are under 64 octets, shared
// access signatures under 1 KiB.
const maxToken = 2 << 10

// sasScheme names the form of an Authorization header that is a credential as a
// whole: cloud device libraries sign and send it so.
const sasScheme = "SharedAccessSignature"

// simpleEnroll answers /simpleenroll (RFC 7030, 4.2.1).
func (s *Server) simpleEnroll(w http.ResponseWriter, r *http.Request, fleet string) error {
	token, err := credential(r)
	if err != nil {
		return err
	}
	if token == "" && len(r.TLS.PeerCertificates) == 0 {
		return errNoEvidence("simpleenroll")
	}
	return s.enroll(w, r, s.newRequest(r, fleet, token), s.Enroller.Enroll)
}

func errNoEvidence(operation string) error {
	return countersign.Errorf(countersign.Unauthenticated, "%s needs an enrollment token or a client certificate", operation).
		WithNext("give a token as the password of HTTP Basic, with any user name")
}

// simpleReenroll answers /simplereenroll (RFC 7030, 4.2.2). A token is passed
// on, but the current certificate is what counts.
func (s *Server) simpleReenroll(w http.ResponseWriter, r *http.Request, fleet string) error {
	// 403, not 401: no password that a challenge could ask for would do.
	if len(r.TLS.PeerCertificates) == 0 {
		return countersign.Errorf(countersign.NotAllowed, "simplereenroll needs the device's current certificate as TLS client certificate").
			WithNext("connect with it, or use simpleenroll with a token")
	}
	token, err := credential(r)
	if err != nil {
		return err
	}
	return s.enroll(w, r, s.newRequest(r, fleet, token), s.Enroller.Reenroll)
}

type enrollFunc func(context.Context, countersign.EnrollRequest) (*countersign.Grant, error)

// newRequest returns all of a request that does not take reading its body.
func (s *Server) newRequest(r *http.Request, fleet, token string) countersign.EnrollRequest {
	req := countersign.EnrollRequest{
		Evidence: countersign.Evidence{Token: token, Peer: r.TLS.PeerCertificates},
		Fleet:    fleet,
		Door:     "est",
	}
	req.Remote, _ = netip.ParseAddrPort(r.RemoteAddr) // zero where the listener has no such address
	if s.Now != nil {
		req.Began = s.Now()
	}
	return req
}

func (s *Server) enroll(w http.ResponseWriter, r *http.Request, req countersign.EnrollRequest, enroll enrollFunc) error {
	var err error
	if req.CSR, err = s.readCSR(w, r); err != nil {
		return err
	}
	if req.Bound, err = s.bound(r.TLS, req.CSR); err != nil {
		return err
	}
	grant, err := enroll(r.Context(), req)
	if err != nil {
		return err
	}
	// RFC 7030, 4.2.3: the issued certificate alone; its path is at cacerts.
	der, err := cms.EncodeCertsOnly(grant.Leaf)
	if err != nil {
		return fmt.Errorf("answer enrollment: %w", err)
	}
	return s.write(w, r, mediaTypeCertsOnly, der)
}

// credential returns the token that the request carries, empty if it has none.
func credential(r *http.Request) (string, error) {
	token := ""
	header := r.Header.Get("Authorization")
	scheme, value, _ := strings.Cut(header, " ")
	switch {
	case strings.EqualFold(scheme, "Basic"):
		_, token, _ = r.BasicAuth()
	case strings.EqualFold(scheme, "Bearer"):
		token = strings.TrimSpace(value)
	case strings.EqualFold(scheme, sasScheme):
		token = header // the Enroller distinguishes tokens by their form
	}
	if len(token) > maxToken {
		return "", countersign.Errorf(countersign.BadCredential, "the token is longer than any that was given out").
			WithNext("give a token as it was printed")
	}
	return token, nil
}

func (s *Server) readCSR(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if err := checkMediaType(r.Header.Get("Content-Type")); err != nil {
		return nil, err
	}
	limit := s.MaxBody
	if limit <= 0 {
		limit = DefaultMaxBody
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, errTooLarge(limit)
	}
	if err != nil {
		return nil, countersign.Errorf(countersign.BadRequest, "the request body ended early").WithCause(err).WithNext("send it again")
	}
	// Content-Transfer-Encoding has no say (RFC 8951, 3.2.1).
	return pkcs10.Decode(body)
}

func errTooLarge(limit int64) error {
	return countersign.Errorf(countersign.TooLarge, "the request is over %d octets", limit).
		WithNext("send a smaller one: a key, a name and a few attributes are enough")
}

// checkMediaType wants application/pkcs10 (RFC 7030, 4.2.1) or nothing: small
// clients leave the header away.
func checkMediaType(contentType string) error {
	if contentType == "" {
		return nil
	}
	if t, _, err := mime.ParseMediaType(contentType); err == nil && t == mediaTypePKCS10 {
		return nil
	}
	return &statusError{
		status:  http.StatusUnsupportedMediaType,
		message: fmt.Sprintf("the body is %.60q instead of %s", contentType, mediaTypePKCS10),
		next:    "send the header Content-Type: " + mediaTypePKCS10,
	}
}
