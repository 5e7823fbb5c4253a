package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/ra"
)

// maxEnrollBody bounds a request for a certificate: the largest CSR in PEM, and
// room for a token and a fleet.
const maxEnrollBody = 128 << 10

// pemChain is the media type of a chain in PEM (RFC 8555, 9.1).
const pemChain = "application/pem-certificate-chain"

// The headers that tell beside a chain in PEM what the JSON form has as fields.
const (
	deviceHeader  = "Countersign-Device"
	renewAtHeader = "Countersign-Renew-At"
)

// Enroll answers devices that enroll and renew over plain HTTPS:
//
//	POST /api/v1/enroll            with a token: field of the JSON body, Bearer, or Basic password; with a SAS
//	                               token: Authorization: SharedAccessSignature; or with a client certificate
//	POST /api/v1/renew             over TLS with the current certificate
//	POST /api/v1/enroll/tpm        with the keys of a TPM 2.0, see tpm.go
//	POST /api/v1/enroll/tpm/answer with the answer to its challenge
//	POST /api/v1/introductions     over TLS with the current certificate: to another device, see self.go
//	POST /api/v1/access-tokens     over TLS with the current certificate: a token of the device's own
//	POST /api/v1/secret            with the present secret or certificate: the device's next secret, see secrets.go
//
// The body is JSON as api.EnrollRequest, or the PKCS #10 request itself in PEM or
// DER. The answer is the chain in PEM without the root, or api.Grant for a caller
// that accepts JSON and not PEM; 202 with Retry-After while an operator has to
// approve. Its listener must ask for client certificates without verifying them.
type Enroll struct {
	Enroller countersign.Enroller
	RA       *ra.Authority // nil: only what the Enroller does
	Now      func() time.Time
	Log      *slog.Logger
}

// ServeHTTP answers one request.
func (e *Enroll) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := newRequestID()
	h := w.Header()
	h.Set(api.RequestIDHeader, id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	r = r.WithContext(context.WithValue(r.Context(), requestKey, id))
	if err := e.serve(w, r); err != nil {
		p := problemOf(r.Context(), err)
		if h.Get("Allow") != "" {
			p.wrongMethod()
		}
		logProblem(r.Context(), e.Log, p, err)
		writePlain(w, p)
	}
}

func (e *Enroll) serve(w http.ResponseWriter, r *http.Request) error {
	var do func(http.ResponseWriter, *http.Request) error
	switch path := strings.TrimPrefix(r.URL.Path, api.Base); {
	case path == "/enroll":
		do = e.enroll
	case path == "/renew":
		do = e.renew
	case path == "/enroll/tpm" && e.RA != nil:
		do = e.challenge
	case path == "/enroll/tpm/answer" && e.RA != nil:
		do = e.answer
	case path == "/introductions" && e.RA != nil:
		do = e.introduce
	case path == "/access-tokens" && e.RA != nil:
		do = e.accessToken
	case path == "/secret" && e.RA != nil:
		do = e.change
	default:
		return countersign.Errorf(countersign.NotFound, "there is no %.200s here", r.URL.Path).
			WithNext("devices use " + api.Base + "/enroll and " + api.Base + "/renew")
	}
	switch {
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		return countersign.Errorf(countersign.BadRequest, "this takes POST only").WithNext("repeat it as POST")
	case r.TLS == nil: // a token must not cross a plain connection
		return countersign.Errorf(countersign.NotAllowed, "certificates are given over TLS only").WithNext("use the https URL")
	}
	return do(w, r)
}

func (e *Enroll) enroll(w http.ResponseWriter, r *http.Request) error {
	req, err := e.read(w, r)
	if err != nil {
		return err
	}
	grant, err := e.Enroller.Enroll(r.Context(), req)
	if err != nil {
		return err
	}
	writeGrant(w, r, grant)
	return nil
}

func (e *Enroll) renew(w http.ResponseWriter, r *http.Request) error {
	req, err := e.read(w, r)
	if err != nil {
		return err
	}
	if len(req.Evidence.Peer) == 0 {
		return countersign.Errorf(countersign.Unauthenticated, "no client certificate was shown").
			WithNext("connect with the current certificate, or enroll with a token")
	}
	grant, err := e.Enroller.Reenroll(r.Context(), req)
	if err != nil {
		return err
	}
	writeGrant(w, r, grant)
	return nil
}

// read decodes the request; it judges none of it.
func (e *Enroll) read(w http.ResponseWriter, r *http.Request) (countersign.EnrollRequest, error) {
	req := countersign.EnrollRequest{
		Evidence: countersign.Evidence{Peer: r.TLS.PeerCertificates, Token: tokenOf(r)},
		Fleet:    r.URL.Query().Get("fleet"),
		Door:     "rest",
		Remote:   remoteOf(r),
		Began:    e.Now(),
	}
	body, err := readAll(w, r)
	if err != nil {
		return req, err
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && kind == "application/json" {
		var in api.EnrollRequest
		if body, err = fromJSON(body, &in); err != nil {
			return req, err
		}
		if in.Token != "" {
			req.Evidence.Token = in.Token
		}
		if in.Fleet != "" {
			req.Fleet = in.Fleet
		}
	}
	req.CSR, err = pkcs10.Decode(body)
	return req, err
}

// remoteOf is where a request comes from; zero where that has no address.
func remoteOf(r *http.Request) netip.AddrPort {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.AddrPort{}
	}
	return remote
}

// readAll reads a body within its bound.
func readAll(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEnrollBody))
	if err == nil {
		return body, nil
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, countersign.Errorf(countersign.TooLarge, "the request is over %d bytes", maxEnrollBody)
	}
	return nil, countersign.Errorf(countersign.BadRequest, "the request broke off").WithCause(err)
}

// fromJSON reads the JSON form and gives the CSR in it.
func fromJSON(body []byte, in *api.EnrollRequest) ([]byte, error) {
	err := decodeStrictly(body, in, `send {"csr": "-----BEGIN CERTIFICATE REQUEST-----...", "token": "..."}`)
	return []byte(in.CSR), err
}

// decodeStrictly reads one JSON value that has no other fields than into; next is
// what to do where it has.
func decodeStrictly(body []byte, into any, next string) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil { // its text may repeat the token
		return countersign.Errorf(countersign.BadRequest, "the body is not the JSON that is wanted here").WithNext(next)
	}
	if dec.More() {
		return countersign.Errorf(countersign.BadRequest, "the body holds more than one JSON value").WithNext("send one object")
	}
	return nil
}

// sharedAccess begins a SAS token, which is an Authorization header of its own.
const sharedAccess = "SharedAccessSignature "

// tokenOf is the token in the Authorization header: Bearer, the password of Basic
// with any user name, or a SAS token.
func tokenOf(r *http.Request) string {
	if h := r.Header.Get("Authorization"); strings.HasPrefix(h, sharedAccess) {
		return h
	}
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	return bearer(r.Header.Get("Authorization"))
}

// writeGrant answers. The grant is on record: a caller that is gone asks again with
// the same key and gets it again.
func writeGrant(w http.ResponseWriter, r *http.Request, g *countersign.Grant) {
	chain := chainText(g)
	accept := r.Header.Get("Accept")
	if strings.Contains(accept, "json") && !strings.Contains(accept, "pem") {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(api.Grant{
			Device: g.Device, Fleet: g.Fleet, Serial: string(g.Serial), Chain: chain,
			RenewAt: utc(g.RenewAt), NotAfter: utc(g.NotAfter),
		})
		return
	}
	w.Header().Set("Content-Type", pemChain)
	w.Header().Set(deviceHeader, g.Device)
	w.Header().Set(renewAtHeader, utc(g.RenewAt).Format(time.RFC3339))
	_, _ = io.WriteString(w, chain)
}

// chainText is the certificate and its chain in PEM without the root, which is
// trusted beforehand or not at all.
func chainText(g *countersign.Grant) string {
	var chain strings.Builder
	chain.WriteString(pemText(g.Leaf))
	for _, der := range g.Chain[:max(0, len(g.Chain)-1)] {
		chain.WriteString(pemText(der))
	}
	return chain.String()
}
