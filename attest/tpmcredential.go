package attest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/countersign-iot/countersign"
)

const (
	// secretSize and nonceSize are the largest that every TPM accepts: a credential
	// and qualifying data may be as long as a SHA-256 digest.
	secretSize = 32
	nonceSize  = 32

	credentialMagic   = 0xBADCC0DE // tpm2-tools' files of type "credential"
	credentialVersion = 1
)

// TPMChallenge goes to the device.
type TPMChallenge struct {
	Credential      []byte // TPM2B_ID_OBJECT
	EncryptedSecret []byte // TPM2B_ENCRYPTED_SECRET
	Nonce           []byte // qualifying data for Certify and Quote
}

// File returns the challenge as tpm2_activatecredential -i reads it: magic and version
// of four octets each, then the two structures.
func (c TPMChallenge) File() []byte {
	b := binary.BigEndian.AppendUint32(nil, credentialMagic)
	b = binary.BigEndian.AppendUint32(b, credentialVersion)
	return append(append(b, c.Credential...), c.EncryptedSecret...)
}

// ChallengeTPM appraises EK and AK of the evidence and makes a challenge that only
// the chip of that EK can answer, and only if that AK is in it (TPM2
// MakeCredential; Part 1, section 24). The expectation stays with the server. Errors
// have code Unauthenticated, BadRequest, TooLarge, NotAllowed, Misconfigured, WeakKey, or those of ValidatePath.
func ChallengeTPM(ev TPMEvidence, o TPMOptions) (TPMChallenge, TPMExpectation, error) {
	id, ek, ak, err := identifyTPM(ev, o)
	if err != nil {
		return TPMChallenge{}, TPMExpectation{}, err
	}
	secret, nonce := make([]byte, secretSize), make([]byte, nonceSize)
	rand.Read(secret) // never fails: the program would end first
	rand.Read(nonce)
	c, err := makeCredential(ek, ak, secret)
	if err != nil {
		return TPMChallenge{}, TPMExpectation{}, countersign.Errorf(countersign.Misconfigured, "no challenge can be made for the TPM's endorsement key").WithCause(err)
	}
	c.Nonce = nonce
	return c, TPMExpectation{Nonce: nonce, SecretHash: sha256.Sum256(secret), EKHash: id.EKHash, AKName: id.AKName}, nil
}

func makeCredential(ek, ak *tpmKey, secret []byte) (TPMChallenge, error) {
	to, err := tpm2.ImportEncapsulationKey(ek.public)
	if err != nil {
		return TPMChallenge{}, fmt.Errorf("couldn't use the endorsement key: %w", err)
	}
	idObject, encrypted, err := tpm2.CreateCredential(rand.Reader, to, ak.name, secret)
	if err != nil {
		return TPMChallenge{}, fmt.Errorf("couldn't make a credential: %w", err)
	}
	return TPMChallenge{Credential: sized(idObject), EncryptedSecret: sized(encrypted)}, nil
}
