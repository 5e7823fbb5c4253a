package rest

import (
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/ra"
)

// maxPCRs is how many registers a TPM 2.0 for the PC has.
const maxPCRs = 24

// challenge answers api.TPMIdentity with api.TPMChallenge.
func (e *Enroll) challenge(w http.ResponseWriter, r *http.Request) error {
	body, err := readAll(w, r)
	if err != nil {
		return err
	}
	var in api.TPMIdentity
	if err := decodeStrictly(body, &in, `send {"ek_public": "...", "ek_certificate": "...", "ak_public": "..."} with base64 of what the TPM gives`); err != nil {
		return err
	}
	c, err := e.RA.ChallengeTPM(r.Context(), in.Fleet, evidenceOf(in), remoteOf(r))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(api.TPMChallenge{ // nobody to tell when the caller is gone
		Session: c.Session, Credential: c.Credential, EncryptedSecret: c.EncryptedSecret, File: c.File(), Nonce: c.Nonce, Expires: utc(c.Expires),
	})
	return nil
}

// answer answers api.TPMAnswer with a grant.
func (e *Enroll) answer(w http.ResponseWriter, r *http.Request) error {
	began := e.Now()
	body, err := readAll(w, r)
	if err != nil {
		return err
	}
	var in api.TPMAnswer
	if err := decodeStrictly(body, &in, `send {"session": "...", "secret": "...", ...} with base64 of what the TPM gives, and the csr in PEM`); err != nil {
		return err
	}
	ev := evidenceOf(in.TPMIdentity)
	ev.Secret, ev.KeyPublic, ev.CertifyInfo, ev.CertifySignature = in.Secret, in.KeyPublic, in.CertifyInfo, in.CertifySignature
	ev.Quote, ev.QuoteSignature = in.Quote, in.QuoteSignature
	if ev.PCRs, err = registersOf(in.PCRs); err != nil {
		return err
	}
	csr, err := pkcs10.Decode([]byte(in.CSR))
	if err != nil {
		return err
	}
	grant, err := e.RA.EnrollTPM(r.Context(), in.Session, ev, countersign.EnrollRequest{
		CSR: csr, Fleet: in.Fleet, Door: "rest", Remote: remoteOf(r), Began: began,
	})
	if err != nil {
		return err
	}
	writeGrant(w, r, grant)
	return nil
}

func evidenceOf(in api.TPMIdentity) ra.TPMEvidence {
	return ra.TPMEvidence{EKPublic: in.EKPublic, EKCertificate: in.EKCertificate, EKChain: in.EKChain, AKPublic: in.AKPublic}
}

func registersOf(in map[string]string) (map[int][]byte, error) {
	out := make(map[int][]byte, len(in))
	for number, text := range in {
		n, err := strconv.Atoi(number)
		value, bad := hex.DecodeString(text)
		if err != nil || bad != nil || n < 0 || n >= maxPCRs {
			return nil, countersign.Errorf(countersign.BadRequest, "pcrs is not hex values by register number").WithNext(`send {"0": "hex SHA-256", ...}`)
		}
		out[n] = value
	}
	return out, nil
}
