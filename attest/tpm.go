package attest

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/weakkey"
)

// TPMEvidence is what a device with a TPM 2.0 presents, in two messages: first its
// identity (EK and AK), then, with the answer to the challenge, the key to be
// certified. Every part is as the TPM returns it (TCG TPM 2.0 Library, Part 2;
// big-endian), so that tpm2-tools and go-attestation can send what they have. A
// public area may come as TPMT_PUBLIC or, with its size before it, TPM2B_PUBLIC.
type TPMEvidence struct {
	EKPublic      []byte   // endorsement key, template L-1, L-2 or H-3 of TCG's EK Credential Profile
	EKCertificate []byte   // DER; empty if the operator registered the EK
	EKChain       [][]byte // DER; intermediate CAs of it, in any order
	AKPublic      []byte   // attestation key: a restricted signing key of the same TPM

	Secret           []byte // what ActivateCredential returned
	KeyPublic        []byte // the key of the certification request
	CertifyInfo      []byte // TPMS_ATTEST of Certify or CertifyCreation: the AK about the key
	CertifySignature []byte // TPMT_SIGNATURE over it

	Quote          []byte         // TPMS_ATTEST of Quote; for a PCR policy only
	QuoteSignature []byte         // TPMT_SIGNATURE over it
	PCRs           map[int][]byte // SHA-256 bank: the value of each PCR that was quoted
}

// TPMOptions are the manufacturers and chips that the operator trusts.
type TPMOptions struct {
	Anchors []Anchor // manufacturers' CAs for EK certificates
	// RegisteredEK are the SHA-256 of the TPM2B_PUBLIC of chips that need no EK
	// certificate: the output of sha256sum for the file of tpm2_createek -u.
	RegisteredEK [][sha256.Size]byte
	PCRs         map[int][]byte // reference values, SHA-256 bank; empty: any state will do
	// WeakKeys lists keys that a TPM may not have; nil: the built-in list.
	WeakKeys *weakkey.Blocklist
	Now      time.Time
}

// TPMIdentity is a chip that its manufacturer or the operator vouches for, and its
// attestation key.
type TPMIdentity struct {
	// RegistrationID is the name of the chip in Azure's device SDKs: the
	// SHA-256 of the EK's TPM2B_PUBLIC in base32, lower case, unpadded.
	RegistrationID string
	EKHash         [sha256.Size]byte // the same in octets
	Registered     bool              // vouched for by the operator; if not, by an EK certificate
	AKName         []byte            // name algorithm and digest of the AK (Part 1, section 16)
	Model          TPMModel          // from the EK certificate; empty without one
	EKThumbprint   Thumbprint        // of the EK certificate; zero without one
}

// TPMResult is what was proved: the key of the certification request is in
// this chip and cannot leave it.
type TPMResult struct {
	TPMIdentity
	KeyName []byte // name of the certified key
	PCRs    bool   // the chip's state is one of the reference values
}

// TPMExpectation is what the answer to a challenge must match. It is for the server
// alone, which must use it once: this package does not detect a repeated answer.
type TPMExpectation struct {
	Nonce      []byte
	SecretHash [sha256.Size]byte // SHA-256 of the secret, which is not stored
	EKHash     [sha256.Size]byte
	AKName     []byte
}

// EKHash returns the SHA-256 of an endorsement key's TPM2B_PUBLIC, by which chips are
// registered. It refuses a key that is known to be weak, with the errors of
// ChallengeTPM.
func EKHash(ekPublic []byte, known *weakkey.Blocklist) ([sha256.Size]byte, error) {
	ek, err := parseEK(ekPublic, known)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return ek.hash(), nil
}

// identifyTPM appraises EK and AK of the evidence and returns the chip that it names.
// That is a claim until a challenge is answered.
func identifyTPM(ev TPMEvidence, o TPMOptions) (id TPMIdentity, ek, ak *tpmKey, err error) {
	if ek, err = parseEK(ev.EKPublic, o.WeakKeys); err != nil {
		return id, nil, nil, err
	}
	if ak, err = parseAK(ev.AKPublic, o.WeakKeys); err != nil {
		return id, nil, nil, err
	}
	id = TPMIdentity{RegistrationID: registrationID(ek), EKHash: ek.hash(), AKName: ak.name}
	id.Registered = slices.Contains(o.RegisteredEK, id.EKHash)
	if len(ev.EKCertificate) == 0 && !id.Registered {
		return id, nil, nil, countersign.Errorf(countersign.NotAllowed, "the TPM has no endorsement key certificate and its endorsement key is not registered").
			WithNext("send the certificate (tpm2_getekcertificate), or register the endorsement key")
	}
	if len(ev.EKCertificate) > 0 {
		if err := id.readCertificate(ev, ek, o); err != nil {
			return id, nil, nil, err
		}
	}
	return id, ek, ak, nil
}

// AppraiseTPM appraises the whole evidence against the expectation, and checks that
// csrPub, the key of the certification request, is in the TPM: created in it, bound
// to it, unable to leave it. Errors have the codes of ChallengeTPM,
// BadCredential for a wrong answer to the challenge, and NotAllowed for a state of the chip that is not among the reference values.
func AppraiseTPM(ev TPMEvidence, csrPub crypto.PublicKey, want TPMExpectation, o TPMOptions) (TPMResult, error) {
	if err := CheckPCRs(o.PCRs); err != nil {
		return TPMResult{}, err
	}
	id, _, ak, err := identifyTPM(ev, o)
	if err != nil {
		return TPMResult{}, err
	}
	if err := want.answered(ev.Secret, id); err != nil {
		return TPMResult{}, err
	}
	key, err := parseAttestedKey(ev.KeyPublic, o.WeakKeys)
	if err != nil {
		return TPMResult{}, err
	}
	if !key.is(csrPub) {
		return TPMResult{}, badTPM("the certification request is for another key than the one that the TPM attests").
			WithNext("sign the certification request with the attested key")
	}
	if err := ak.checkCertify(ev, key, want.Nonce); err != nil {
		return TPMResult{}, err
	}
	result := TPMResult{TPMIdentity: id, KeyName: key.name}
	if len(o.PCRs) > 0 {
		if err := ak.checkQuote(ev, o.PCRs, want.Nonce); err != nil {
			return TPMResult{}, err
		}
		result.PCRs = true
	}
	return result, nil
}

// answered checks that the secret is the one that only this chip, and in it only this
// AK, could have recovered.
func (e TPMExpectation) answered(secret []byte, id TPMIdentity) error {
	if len(e.Nonce) == 0 || len(e.AKName) == 0 {
		return countersign.Errorf(countersign.BadRequest, "no challenge is open for this TPM").WithNext("ask for a challenge first")
	}
	if id.EKHash != e.EKHash || !bytes.Equal(id.AKName, e.AKName) {
		return badTPM("the challenge was for another TPM or another attestation key").
			WithNext("send the same endorsement key and attestation key in both messages")
	}
	got := sha256.Sum256(secret)
	if subtle.ConstantTimeCompare(got[:], e.SecretHash[:]) != 1 {
		// The only secret in the exchange: a chip that is not the one it names can only guess.
		return countersign.Errorf(countersign.BadCredential, "the answer to the challenge is wrong").
			WithNext("recover the secret with ActivateCredential, in the TPM of the endorsement key that was sent")
	}
	return nil
}

// badTPM refuses evidence that is well-formed but does not match.
func badTPM(format string, args ...any) *countersign.Error {
	return countersign.Errorf(countersign.Misconfigured, format, args...)
}
