package enroll

import (
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/pkcs10"
)

// pemChain is the media type of a chain in PEM (RFC 8555, 9.1).
const pemChain = "application/pem-certificate-chain"

// The header fields that have, beside a chain in PEM, what the JSON form has as fields.
const (
	deviceHeader  = "Countersign-Device"
	renewAtHeader = "Countersign-Renew-At"
)

func (s *Server) enroll(w http.ResponseWriter, r *http.Request) error {
	req, err := s.read(w, r)
	if err != nil {
		return err
	}
	grant, err := s.Enroller.Enroll(r.Context(), req)
	if err != nil {
		return err
	}
	writeGrant(w, r, grant)
	return nil
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request) error {
	req, err := s.read(w, r)
	if err != nil {
		return err
	}
	if len(req.Evidence.Peer) == 0 {
		return countersign.Errorf(countersign.Unauthenticated, "no client certificate was shown").
			WithNext("connect with the current certificate, or enroll with a token")
	}
	grant, err := s.Enroller.Reenroll(r.Context(), req)
	if err != nil {
		return err
	}
	writeGrant(w, r, grant)
	return nil
}

// read decodes a request for a certificate: JSON as api.EnrollRequest, or the PKCS #10
// request itself in PEM or DER.
func (s *Server) read(w http.ResponseWriter, r *http.Request) (countersign.EnrollRequest, error) {
	req := countersign.EnrollRequest{
		Evidence: countersign.Evidence{Peer: r.TLS.PeerCertificates, Token: tokenOf(r)},
		Fleet:    r.URL.Query().Get("fleet"),
		Door:     door,
		Remote:   remoteOf(r),
		Began:    s.Now(),
	}
	body, err := readAll(w, r)
	if err != nil {
		return req, err
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && kind == "application/json" {
		var in api.EnrollRequest
		if err := decode(body, &in, `send {"csr": "-----BEGIN CERTIFICATE REQUEST-----...", "token": "..."}`); err != nil {
			return req, err
		}
		body = []byte(in.CSR)
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

// sharedAccess begins a SAS token, which is an Authorization header of its own.
const sharedAccess = "SharedAccessSignature "

// tokenOf returns the token in the Authorization header: Bearer, the password of Basic
// with any user name, or a SAS token.
func tokenOf(r *http.Request) string {
	h := r.Header.Get("Authorization")
	if strings.HasPrefix(h, sharedAccess) {
		return h
	}
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	return api.Bearer(h)
}

// challenge answers api.TPMIdentity with api.TPMChallenge.
func (s *Server) challenge(w http.ResponseWriter, r *http.Request) error {
	var in api.TPMIdentity
	if err := readJSON(w, r, &in, `send {"ek_public": "...", "ek_certificate": "...", "ak_public": "..."} with base64 of what the TPM returns`); err != nil {
		return err
	}
	c, err := s.Devices.ChallengeTPM(r.Context(), in, remoteOf(r))
	if err != nil {
		return err
	}
	writeJSON(w, c)
	return nil
}

// answer answers api.TPMAnswer with a grant.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) error {
	began := s.Now()
	var in api.TPMAnswer
	if err := readJSON(w, r, &in, `send {"session": "...", "secret": "...", ...} with base64 of what the TPM returns, and the csr in PEM`); err != nil {
		return err
	}
	csr, err := pkcs10.Decode([]byte(in.CSR))
	if err != nil {
		return err
	}
	grant, err := s.Devices.EnrollTPM(r.Context(), in, countersign.EnrollRequest{CSR: csr, Fleet: in.Fleet, Door: door, Remote: remoteOf(r), Began: began})
	if err != nil {
		return err
	}
	writeGrant(w, r, grant)
	return nil
}

// writeGrant answers with the chain in PEM without the root, or with api.Grant where the
// client accepts JSON and not PEM. The grant is on record: a client that is gone asks
// again with the same key and gets it again.
func writeGrant(w http.ResponseWriter, r *http.Request, g *countersign.Grant) {
	out := api.GrantOf(g)
	if accept := r.Header.Get("Accept"); strings.Contains(accept, "json") && !strings.Contains(accept, "pem") {
		writeJSON(w, out)
		return
	}
	w.Header().Set("Content-Type", pemChain)
	w.Header().Set(deviceHeader, out.Device)
	w.Header().Set(renewAtHeader, out.RenewAt.Format(time.RFC3339))
	_, _ = io.WriteString(w, out.Chain)
}
