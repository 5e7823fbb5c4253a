package api

import (
	"encoding/hex"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
)

// TPMIdentity is what a device with a TPM 2.0 says of itself: base64 of what the
// chip returns (TCG TPM 2.0 Library, Part 2).
type TPMIdentity struct {
	Fleet         string   `json:"fleet,omitempty"`
	EKPublic      []byte   `json:"ek_public" doc:"Endorsement key, TPM2B_PUBLIC or TPMT_PUBLIC."`
	EKCertificate []byte   `json:"ek_certificate,omitempty" doc:"DER; absent if the operator registered the key."`
	EKChain       [][]byte `json:"ek_chain,omitempty" doc:"DER; intermediate CAs of it, in any order."`
	AKPublic      []byte   `json:"ak_public" doc:"Attestation key: a restricted signing key of the same TPM."`
}

// TPMChallenge can be answered by that chip alone.
type TPMChallenge struct {
	Session         string    `json:"session" doc:"Send it back with the answer."`
	Credential      []byte    `json:"credential" doc:"TPM2B_ID_OBJECT."`
	EncryptedSecret []byte    `json:"encrypted_secret" doc:"TPM2B_ENCRYPTED_SECRET."`
	File            []byte    `json:"file" doc:"Both as tpm2_activatecredential -i reads them."`
	Nonce           []byte    `json:"nonce" doc:"Qualifying data for Certify and Quote."`
	Expires         time.Time `json:"expires"`
}

// TPMAnswer is the answer to a challenge, and asks for a certificate.
type TPMAnswer struct {
	TPMIdentity
	Session          string            `json:"session"`
	Secret           []byte            `json:"secret" doc:"What ActivateCredential gave."`
	KeyPublic        []byte            `json:"key_public" doc:"The key of the certification request, TPM2B_PUBLIC or TPMT_PUBLIC."`
	CertifyInfo      []byte            `json:"certify_info" doc:"TPMS_ATTEST of Certify: the attestation key about the key."`
	CertifySignature []byte            `json:"certify_signature" doc:"TPMT_SIGNATURE over it."`
	Quote            []byte            `json:"quote,omitempty" doc:"TPMS_ATTEST of Quote, where the fleet asks for registers."`
	QuoteSignature   []byte            `json:"quote_signature,omitempty"`
	PCRs             map[string]string `json:"pcrs,omitempty" doc:"SHA-256 bank: hex value by register number."`
	CSR              string            `json:"csr" doc:"PKCS #10 in PEM."`
}

// maxPCRs is how many registers a TPM 2.0 for the PC has.
const maxPCRs = 24

// Registers returns the values of PCRs by the number of the register.
func (a *TPMAnswer) Registers() (map[int][]byte, error) {
	out := make(map[int][]byte, len(a.PCRs))
	for number, text := range a.PCRs {
		n, err := strconv.Atoi(number)
		value, bad := hex.DecodeString(text)
		if err != nil || bad != nil || n < 0 || n >= maxPCRs {
			return nil, countersign.Errorf(countersign.BadRequest, "pcrs is not hex values by register number").WithNext(`send {"0": "hex SHA-256", ...}`)
		}
		out[n] = value
	}
	return out, nil
}
