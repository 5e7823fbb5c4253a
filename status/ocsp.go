package status

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign"
)

const (
	mediaTypeOCSPRequest  = "application/ocsp-request"
	mediaTypeOCSPResponse = "application/ocsp-response"
)

// maxOCSPPath bounds the length of a request in a path: base64 with every character escaped.
const maxOCSPPath = MaxOCSPRequest * 4

// ocsp serves an OCSP request by POST or GET (RFC 6960, A.1). rest is the escaped path after
// /ocsp.
func (s *Server) ocsp(w http.ResponseWriter, r *http.Request, rest string) {
	var der []byte
	var err error
	get := false
	switch r.Method {
	case http.MethodPost:
		if err := checkMediaType(r.Header.Get("Content-Type")); err != nil {
			s.refuse(w, r, err)
			return
		}
		der, err = readBody(w, r)
	case http.MethodGet, http.MethodHead:
		get = true
		der, err = decodePath(rest)
	default:
		s.refuse(w, r, &statusError{http.StatusMethodNotAllowed, "GET, HEAD, POST", "OCSP accepts only GET and POST"})
		return
	}
	if err != nil {
		if countersign.CodeOf(err) == countersign.TooLarge {
			s.refuse(w, r, err)
			return
		}
		s.ocspError(w, r, err)
		return
	}
	q, err := ParseOCSPRequest(der)
	if err != nil {
		s.ocspError(w, r, countersign.Errorf(countersign.BadRequest, "the OCSP request is malformed").WithCause(err))
		return
	}
	answer, err := s.Authority.OCSP(r.Context(), q)
	if err != nil {
		s.ocspError(w, r, err)
		return
	}
	if get && q.Nonce == nil {
		sum := sha256.Sum256(answer.DER)
		s.serve(w, r, file{
			mediaTypeOCSPResponse, quoted(hex.EncodeToString(sum[:16])),
			answer.ThisUpdate, answer.NextUpdate, bytes.NewReader(answer.DER),
		})
		return
	}
	s.writeOCSP(w, r, answer.DER)
}

// writeOCSP sends a response that no cache may store, because it is for one request or an
// error.
func (s *Server) writeOCSP(w http.ResponseWriter, r *http.Request, der []byte) {
	h := w.Header()
	h.Set("Content-Type", mediaTypeOCSPResponse)
	h.Set("Content-Length", strconv.Itoa(len(der)))
	h.Set("Cache-Control", "no-store")
	if _, err := w.Write(der); err != nil {
		s.log().DebugContext(r.Context(), "ocsp answer not delivered", "remote", r.RemoteAddr, "err", err)
	}
}

// readBody reads the body of a POST. It returns TooLarge above MaxOCSPRequest.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	switch n := r.ContentLength; {
	case n > MaxOCSPRequest:
		return nil, errTooLarge
	case n > 0: // the usual case: one allocation is enough
		der := make([]byte, n)
		if _, err := io.ReadFull(r.Body, der); err != nil {
			return nil, countersign.Errorf(countersign.BadRequest, "the OCSP request ended early").WithCause(err)
		}
		return der, nil
	}
	der, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxOCSPRequest))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, errTooLarge
	}
	if err != nil {
		return nil, countersign.Errorf(countersign.BadRequest, "the OCSP request ended early").WithCause(err)
	}
	return der, nil
}

var errTooLarge = countersign.Errorf(countersign.TooLarge, "the OCSP request is over %d octets", MaxOCSPRequest).
	WithNext("ask for fewer certificates at a time")

// decodePath decodes the request in a path: base64, escaped or not, padded or not. It
// ignores slashes before it, which come from a responder address that ends with one: a DER
// sequence never begins with a slash in base64.
func decodePath(escaped string) ([]byte, error) {
	if len(escaped) > maxOCSPPath {
		return nil, errTooLarge
	}
	text, err := url.PathUnescape(strings.TrimLeft(escaped, "/"))
	if err == nil {
		text = strings.TrimRight(strings.TrimLeft(text, "/"), "=")
		var der []byte
		if der, err = base64.RawStdEncoding.DecodeString(text); err == nil {
			return der, nil
		}
	}
	return nil, countersign.Errorf(countersign.BadRequest, "the path has no OCSP request in base64").WithCause(err)
}

// checkMediaType checks that the media type is application/ocsp-request (RFC 6960, A.1). It
// may be empty, because some small clients do not send the header.
func checkMediaType(contentType string) error {
	if contentType == "" || contentType == mediaTypeOCSPRequest {
		return nil
	}
	if t, _, err := mime.ParseMediaType(contentType); err == nil && t == mediaTypeOCSPRequest {
		return nil
	}
	return &statusError{http.StatusUnsupportedMediaType, "", "the body must be " + mediaTypeOCSPRequest}
}
