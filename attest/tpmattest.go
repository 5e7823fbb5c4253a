package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/countersign-iot/countersign"
)

// maxPCR is the highest register that every PC Client TPM has.
const maxPCR = 23

// tpmGenerated begins a structure that a TPM generated (TPM_GENERATED_VALUE). No
// restricted key signs a digest of external data that begins with it.
var tpmGenerated = binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMGeneratedValue))

// CheckPCRs reports whether these can be reference values: PCRs 0 to 23 with
// SHA-256 digests. Errors have code BadRequest.
func CheckPCRs(values map[int][]byte) error {
	for _, i := range slices.Sorted(maps.Keys(values)) {
		if i < 0 || i > maxPCR || len(values[i]) != sha256.Size {
			return countersign.Errorf(countersign.BadRequest, "PCR %d: a reference value is for one of the PCRs 0 to %d and has %d octets", i, maxPCR, sha256.Size).
				WithNext("take the values from: tpm2_pcrread sha256")
		}
	}
	return nil
}

// checkCertify checks that the AK attested, in this session, that the key is in its TPM.
func (k *tpmKey) checkCertify(ev TPMEvidence, key *tpmKey, nonce []byte) error {
	const what = "key certification"
	a, err := k.statement(what, ev.CertifyInfo, ev.CertifySignature, nonce)
	if err != nil {
		return err
	}
	name, ok := certified(a)
	if !ok {
		return badTPM("the TPM's key certification is a statement of another kind").
			WithNext("make it with TPM2_Certify, or with tpm2_certifycreation -q")
	}
	if !bytes.Equal(name, key.name) {
		return badTPM("the TPM's key certification is about another key").
			WithNext("certify the key of the certification request")
	}
	return nil
}

// certified returns the name of the key that a statement is about. CertifyCreation
// proves no less than Certify: the TPM made that key, and the name covers the
// attributes by which it cannot leave. tpm2_certify takes no nonce; tpm2_certifycreation does.
func certified(a *tpm2.TPMSAttest) (name []byte, ok bool) {
	switch a.Type {
	case tpm2.TPMSTAttestCertify:
		if info, err := a.Attested.Certify(); err == nil {
			return info.Name.Buffer, true
		}
	case tpm2.TPMSTAttestCreation:
		if info, err := a.Attested.Creation(); err == nil {
			return info.ObjectName.Buffer, true
		}
	}
	return nil, false
}

// statement reads a structure that the TPM generated, signed by the AK, with the nonce
// of this session as qualifying data.
func (k *tpmKey) statement(what string, attest, signature, nonce []byte) (*tpm2.TPMSAttest, error) {
	if err := checkTPMSize(what, attest, maxTPMAttest); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(attest, tpmGenerated) {
		return nil, badTPM("the %s was not made by a TPM", what).
			WithNext("send the TPMS_ATTEST as it is, which begins with ff544347")
	}
	a, err := decodeTPM[tpm2.TPMSAttest](attest)
	if err != nil {
		return nil, malformedTPM(what, err)
	}
	if err := k.verify(what, attest, signature); err != nil {
		return nil, err
	}
	if len(nonce) == 0 || !bytes.Equal(a.ExtraData.Buffer, nonce) {
		return nil, badTPM("the TPM's %s is not of this session", what).
			WithNext("make it with the challenge's nonce as qualifying data")
	}
	return a, nil
}

// verify checks a TPMT_SIGNATURE of a restricted key, which has one scheme.
func (k *tpmKey) verify(what string, signed, signature []byte) error {
	if err := checkTPMSize(what+"'s signature", signature, maxTPMSignature); err != nil {
		return err
	}
	s, err := decodeTPM[tpm2.TPMTSignature](signature)
	if err != nil {
		return malformedTPM(what+"'s signature", err)
	}
	alg, hash, err := k.scheme()
	if err != nil {
		return weakTPM("attestation key", err.Error())
	}
	if s.SigAlg != alg || !verifyTPM(k.key, hash, digestOf(hash, signed, nil), s) {
		return badTPM("the TPM's %s is not signed by its attestation key", what).
			WithNext("sign with the attestation key that was sent, in its own scheme and hash")
	}
	return nil
}

func verifyTPM(key crypto.PublicKey, hash crypto.Hash, digest []byte, s *tpm2.TPMTSignature) bool {
	switch s.SigAlg {
	case tpm2.TPMAlgRSASSA:
		k, isRSA := key.(*rsa.PublicKey)
		sig, err := s.Signature.RSASSA()
		return isRSA && err == nil && sameHash(sig.Hash, hash) && rsa.VerifyPKCS1v15(k, hash, digest, sig.Sig.Buffer) == nil
	case tpm2.TPMAlgRSAPSS:
		k, isRSA := key.(*rsa.PublicKey)
		sig, err := s.Signature.RSAPSS()
		return isRSA && err == nil && sameHash(sig.Hash, hash) && rsa.VerifyPSS(k, hash, digest, sig.Sig.Buffer, nil) == nil
	case tpm2.TPMAlgECDSA:
		k, isEC := key.(*ecdsa.PublicKey)
		sig, err := s.Signature.ECDSA()
		return isEC && err == nil && sameHash(sig.Hash, hash) &&
			ecdsa.Verify(k, digest, new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer))
	}
	return false
}

func sameHash(alg tpm2.TPMIAlgHash, want crypto.Hash) bool {
	h, err := tpmHash(alg)
	return err == nil && h == want
}

// checkQuote checks that the AK attested, in this session, that the PCRs have the
// reference values.
func (k *tpmKey) checkQuote(ev TPMEvidence, reference map[int][]byte, nonce []byte) error {
	const what = "quote"
	a, err := k.statement(what, ev.Quote, ev.QuoteSignature, nonce)
	if err != nil {
		return err
	}
	info, err := a.Attested.Quote()
	if a.Type != tpm2.TPMSTAttestQuote || err != nil {
		return badTPM("the TPM's quote is a statement of another kind").WithNext("make it with tpm2_quote")
	}
	selected, err := selectedPCRs(info.PCRSelect)
	if err != nil {
		return err
	}
	var values []byte // in the order of the registers, as the TPM hashed them (Part 1, section 17.5)
	for _, i := range selected {
		if len(ev.PCRs[i]) != sha256.Size {
			return countersign.Errorf(countersign.BadRequest, "PCR %d is in the TPM's quote, but its value was not sent", i).
				WithNext("send the SHA-256 value of each PCR that is quoted")
		}
		values = append(values, ev.PCRs[i]...)
	}
	_, hash, err := k.scheme()
	if err != nil {
		return weakTPM("attestation key", err.Error())
	}
	if !bytes.Equal(digestOf(hash, values, nil), info.PCRDigest.Buffer) {
		return badTPM("the PCR values that were sent are not the ones that the TPM quoted").
			WithNext("read the PCRs again, quote and send them together")
	}
	return comparePCRs(ev.PCRs, selected, reference)
}

func comparePCRs(quoted map[int][]byte, selected []int, reference map[int][]byte) error {
	var missing, wrong []string
	for _, i := range slices.Sorted(maps.Keys(reference)) {
		switch {
		case !slices.Contains(selected, i):
			missing = append(missing, strconv.Itoa(i))
		case !bytes.Equal(quoted[i], reference[i]):
			wrong = append(wrong, strconv.Itoa(i))
		}
	}
	if len(missing) > 0 {
		return badTPM("the TPM's quote leaves out PCR %s", strings.Join(missing, ", ")).
			WithNext("quote all PCRs that the fleet's rules name")
	}
	if len(wrong) > 0 {
		return countersign.Errorf(countersign.NotAllowed, "the device did not start the software that the fleet's rules expect: PCR %s differs", strings.Join(wrong, ", ")).
			WithNext("find out what changed on the device; if that is right, update the reference values")
	}
	return nil
}

// selectedPCRs reads a selection of the SHA-256 bank alone: with several banks it would
// not be known which bank a value is of.
func selectedPCRs(list tpm2.TPMLPCRSelection) ([]int, error) {
	const next = "quote the sha256 bank alone (-l sha256:0,1,...)"
	if len(list.PCRSelections) != 1 || list.PCRSelections[0].Hash != tpm2.TPMAlgSHA256 {
		return nil, badTPM("the TPM's quote is not of the SHA-256 bank alone").WithNext(next)
	}
	var selected []int
	for i, octet := range list.PCRSelections[0].PCRSelect {
		for bit := range 8 {
			if octet>>bit&1 == 1 {
				selected = append(selected, i*8+bit)
			}
		}
	}
	if len(selected) == 0 || selected[len(selected)-1] > maxPCR {
		return nil, badTPM("the TPM's quote is of no PCR, or of one above %d", maxPCR).WithNext(next)
	}
	return selected, nil
}
