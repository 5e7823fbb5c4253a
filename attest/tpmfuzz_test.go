package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// softTPMKey is a P-256 key with the public area of a key in a TPM.
func softTPMKey(t testing.TB, restricted bool) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return key, tpm2.Marshal(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, SignEncrypt: true, Restricted: restricted},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	})
}

// signTPM signs as a key in a TPM would, but whatever it is given.
func signTPM(t testing.TB, key *ecdsa.PrivateKey, message []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: r.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: s.Bytes()},
	})})
}

// FuzzTPMPublic reads public areas of strangers. Whatever is taken must be
// encoded in one way only, since its digest is a name.
func FuzzTPMPublic(f *testing.F) {
	for _, restricted := range []bool{false, true} {
		_, area := softTPMKey(f, restricted)
		f.Add(area)
		f.Add(sized(area))
	}
	key, _ := softTPMKey(f, false)
	ek, err := EKArea(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ek)
	f.Fuzz(func(t *testing.T, b []byte) {
		ek, ekErr := parseEK(b, nil)
		ak, akErr := parseAK(b, nil)
		key, keyErr := parseAttestedKey(b, nil)
		for _, k := range []*tpmKey{ek, ak, key} {
			if k == nil {
				continue
			}
			if !bytes.Equal(tpm2.Marshal(*k.public), k.area) || !bytes.HasSuffix(b, k.area) || len(b)-len(k.area) > 2 {
				t.Errorf("read %x as %x", b, k.area)
			}
		}
		if ekErr == nil {
			if _, err := makeCredential(ek, ek, make([]byte, secretSize)); err != nil {
				t.Errorf("an accepted endorsement key takes no credential: %v", err)
			}
		}
		if akErr == nil && keyErr == nil {
			t.Error("one key is restricted and is not")
		}
	})
}

// FuzzTPMAttest reads statements that were signed well, as if the TPM were hostile.
func FuzzTPMAttest(f *testing.F) {
	signer, area := softTPMKey(f, true)
	ak, err := parseAK(area, nil)
	if err != nil {
		f.Fatal(err)
	}
	nonce := []byte("nonce")
	selection := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{1, 0, 0}}}}
	for _, a := range []tpm2.TPMSAttest{
		{Type: tpm2.TPMSTAttestCertify, Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: tpm2.TPM2BName{Buffer: ak.name}})},
		{Type: tpm2.TPMSTAttestCreation, Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{ObjectName: tpm2.TPM2BName{Buffer: ak.name}})},
		{Type: tpm2.TPMSTAttestQuote, Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{PCRSelect: selection, PCRDigest: tpm2.TPM2BDigest{Buffer: make([]byte, 32)}})},
	} {
		a.Magic, a.ExtraData = tpm2.TPMGeneratedValue, tpm2.TPM2BData{Buffer: nonce}
		f.Add(tpm2.Marshal(a))
	}
	values := map[int][]byte{}
	for i := range maxPCR + 1 {
		values[i] = make([]byte, sha256.Size)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		signature := signTPM(t, signer, b)
		ev := TPMEvidence{CertifyInfo: b, CertifySignature: signature, Quote: b, QuoteSignature: signature, PCRs: values}
		if ak.checkCertify(ev, ak, nonce) == nil && (!bytes.Contains(b, nonce) || !bytes.Contains(b, ak.name)) {
			t.Errorf("took %x", b)
		}
		if err := ak.checkQuote(ev, map[int][]byte{0: values[0]}, nonce); err == nil && !bytes.Contains(b, nonce) {
			t.Errorf("took %x", b)
		}
	})
}

// FuzzTPMSignature reads signatures. None but the key's own must hold.
func FuzzTPMSignature(f *testing.F) {
	signer, area := softTPMKey(f, true)
	ak, err := parseAK(area, nil)
	if err != nil {
		f.Fatal(err)
	}
	message := []byte("what was signed")
	f.Add(signTPM(f, signer, []byte("what was not")))
	f.Add(tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256})}))
	f.Add(tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgHMAC, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgHMAC, &tpm2.TPMTHA{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)})}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ak.verify("statement", message, b) == nil {
			t.Errorf("took %x", b)
		}
	})
}

// FuzzEKCertificate reads EK certificates of strangers.
func FuzzEKCertificate(f *testing.F) {
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x00})
	f.Fuzz(func(_ *testing.T, b []byte) {
		chain, err := parseEKChain(TPMEvidence{EKCertificate: b})
		if err != nil {
			return
		}
		_, _ = tpmModel(chain[0]) // none of the three may panic
		_ = checkEKPath(chain, TPMOptions{})
		readOAEPKey(chain[0])
	})
}
