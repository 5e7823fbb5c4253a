package tpmtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/countersign-iot/countersign/attest"
)

// Where a TPM's maker leaves the certificates of endorsement keys (TCG EK
// Credential Profile, 2.2.1.4).
const (
	nvRSACertificate  = 0x01c00002
	nvP384Certificate = 0x01c00016
	// nvChunk is what every TPM reads at once.
	nvChunk = 512
)

// Where swtpm_setup leaves the keys with a certificate.
const (
	persistentRSAEK  = 0x81010001
	persistentP384EK = 0x81010016
)

// KeyAttributes are those of a key that serves a device: it cannot leave the TPM.
var KeyAttributes = tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true}

// EK is a kind of endorsement key.
type EK int

// The kinds. P256 has no certificate in swtpm.
const (
	RSA EK = iota
	P256
	P384
)

// Key is a key in the TPM.
type Key struct {
	Public []byte // TPMT_PUBLIC
	Handle tpm2.NamedHandle
	tpm    transport.TPM
}

// Device does what a device does with its TPM. It fails the test when the TPM refuses.
type Device struct {
	EK, AK, Key   *Key
	EKCertificate []byte
	kind          EK
	maker         *TPM
	tpm           transport.TPM
}

// Device makes endorsement key, attestation key (P-256) and a key for the
// certification request (P-256).
func (m *TPM) Device(t testing.TB, kind EK) *Device {
	t.Helper()
	d := &Device{kind: kind, maker: m, tpm: m.Open(t)}
	switch kind {
	case RSA:
		d.EK, d.EKCertificate = d.persistent(t, persistentRSAEK), d.readNV(t, nvRSACertificate)
	case P256:
		d.EK = d.Create(t, tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
	case P384:
		d.EK, d.EKCertificate = d.persistent(t, persistentP384EK), d.readNV(t, nvP384Certificate)
	}
	restricted := KeyAttributes
	restricted.Restricted = true
	d.AK = d.Create(t, tpm2.TPMRHOwner, Template(restricted, "attestation key"))
	d.Key = d.Create(t, tpm2.TPMRHOwner, Template(KeyAttributes, "device key"))
	return d
}

// Template is that of a P-256 signing key with SHA-256. Keys with different
// seeds are different keys.
func Template(attributes tpm2.TPMAObject, seed string) tpm2.TPMTPublic {
	unique := sha256.Sum256([]byte(seed))
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgECC,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: unique[:]}}),
	}
}

// Create makes a primary key. A TPM holds three keys at once; see Flush.
func (d *Device) Create(t testing.TB, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) *Key {
	t.Helper()
	made, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(d.tpm)
	if err != nil {
		t.Fatalf("CreatePrimary: %v", err)
	}
	return &Key{Public: made.OutPublic.Bytes(), Handle: tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, tpm: d.tpm}
}

func (d *Device) persistent(t testing.TB, handle tpm2.TPMHandle) *Key {
	t.Helper()
	public, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(d.tpm)
	if err != nil {
		t.Fatalf("ReadPublic: %v", err)
	}
	return &Key{Public: public.OutPublic.Bytes(), Handle: tpm2.NamedHandle{Handle: handle, Name: public.Name}, tpm: d.tpm}
}

// Import loads a software key, as one that was never in a TPM before.
func (d *Device) Import(t testing.TB, key *ecdsa.PrivateKey, attributes tpm2.TPMAObject) *Key {
	t.Helper()
	template := Template(attributes, "")
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	loaded, err := tpm2.LoadExternal{
		InPrivate: tpm2.New2B(tpm2.TPMTSensitive{
			SensitiveType: tpm2.TPMAlgECC,
			Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: scalar}),
		}),
		InPublic: tpm2.New2B(template), Hierarchy: tpm2.TPMRHNull,
	}.Execute(d.tpm)
	if err != nil {
		t.Fatalf("LoadExternal: %v", err)
	}
	return &Key{Public: tpm2.Marshal(template), Handle: tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name}, tpm: d.tpm}
}

// Flush makes room for another key.
func (d *Device) Flush(t testing.TB, k *Key) {
	t.Helper()
	if _, err := (tpm2.FlushContext{FlushHandle: k.Handle.Handle}).Execute(d.tpm); err != nil {
		t.Fatalf("FlushContext: %v", err)
	}
}

func (d *Device) readNV(t testing.TB, index tpm2.TPMHandle) []byte {
	t.Helper()
	public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d.tpm)
	if err != nil {
		t.Fatalf("NV_ReadPublic: %v", err)
	}
	info, err := public.NVPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	var data []byte
	for len(data) < int(info.DataSize) {
		chunk, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: public.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: public.NVName},
			Size:       min(nvChunk, info.DataSize-uint16(len(data))), //nolint:gosec // below DataSize
			Offset:     uint16(len(data)),                             //nolint:gosec // as above
		}.Execute(d.tpm)
		if err != nil {
			t.Fatalf("NV_Read: %v", err)
		}
		data = append(data, chunk.Data.Buffer...)
	}
	return data
}

// Identity is the first message: the identity that the device claims.
func (d *Device) Identity() attest.TPMEvidence {
	ev := attest.TPMEvidence{EKPublic: d.EK.Public, AKPublic: d.AK.Public, EKCertificate: d.EKCertificate}
	if d.EKCertificate != nil {
		ev.EKChain = [][]byte{d.maker.Intermediate.Raw}
	}
	return ev
}

// Answer is the second message: the whole evidence, for d.Key.
func (d *Device) Answer(t testing.TB, c attest.TPMChallenge) attest.TPMEvidence {
	t.Helper()
	ev := d.Identity()
	secret, err := d.Activate(c)
	if err != nil {
		t.Fatalf("ActivateCredential: %v", err)
	}
	ev.Secret = secret
	ev.KeyPublic = d.Key.Public
	ev.CertifyInfo, ev.CertifySignature = d.Certify(t, d.Key, c.Nonce)
	return ev
}

// Activate recovers the secret of a challenge, if it was made for this TPM and its AK.
func (d *Device) Activate(c attest.TPMChallenge) ([]byte, error) {
	if len(c.Credential) < 2 || len(c.EncryptedSecret) < 2 {
		return nil, errors.New("the challenge is cut off")
	}
	auth := tpm2.PasswordAuth(nil)
	if d.kind != P384 {
		auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(tpm transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicySecret{
				AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
				PolicySession: session,
			}.Execute(tpm)
			return err
		})
	}
	got, err := tpm2.ActivateCredential{
		ActivateHandle: d.AK.auth(),
		KeyHandle:      tpm2.AuthHandle{Handle: d.EK.Handle.Handle, Name: d.EK.Handle.Name, Auth: auth},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Credential[2:]},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.EncryptedSecret[2:]},
	}.Execute(d.tpm)
	if err != nil {
		return nil, err
	}
	return got.CertInfo.Buffer, nil
}

// Certify has the AK say that the key is in its TPM.
func (d *Device) Certify(t testing.TB, k *Key, nonce []byte) (info, signature []byte) {
	t.Helper()
	got, err := tpm2.Certify{
		ObjectHandle:   k.auth(),
		SignHandle:     d.AK.auth(),
		QualifyingData: tpm2.TPM2BData{Buffer: nonce},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(d.tpm)
	if err != nil {
		t.Fatalf("Certify: %v", err)
	}
	return got.CertifyInfo.Bytes(), tpm2.Marshal(got.Signature)
}

// Quote has the AK say what the SHA-256 PCRs are. The values come with it.
func (d *Device) Quote(t testing.TB, nonce []byte, pcrs ...uint) (info, signature []byte, values map[int][]byte) {
	t.Helper()
	selection := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)},
	}}
	got, err := tpm2.Quote{
		SignHandle: d.AK.auth(), QualifyingData: tpm2.TPM2BData{Buffer: nonce},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selection,
	}.Execute(d.tpm)
	if err != nil {
		t.Fatalf("Quote: %v", err)
	}
	values = map[int][]byte{}
	for _, i := range pcrs {
		one := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(i)}}}
		read, err := tpm2.PCRRead{PCRSelectionIn: one}.Execute(d.tpm)
		if err != nil {
			t.Fatalf("PCR_Read: %v", err)
		}
		values[int(i)] = read.PCRValues.Digests[0].Buffer
	}
	return got.Quoted.Bytes(), tpm2.Marshal(got.Signature), values
}

// Extend changes a PCR, as a boot loader does with what it starts.
func (d *Device) Extend(t testing.TB, pcr uint32, what string) {
	t.Helper()
	digest := sha256.Sum256([]byte(what))
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(d.tpm)
	if err != nil {
		t.Fatalf("PCR_Extend: %v", err)
	}
}

func (k *Key) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.Handle.Handle, Name: k.Handle.Name, Auth: tpm2.PasswordAuth(nil)}
}

// PublicKey is the key as Go knows it.
func (k *Key) PublicKey(t testing.TB) crypto.PublicKey {
	t.Helper()
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](k.Public)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := tpm2.Pub(*public)
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

// Signer signs with the key, for certification requests and TLS. It is for P-256 keys with SHA-256.
func (k *Key) Signer(t testing.TB) crypto.Signer {
	t.Helper()
	return signer{k, k.PublicKey(t)}
}

type signer struct {
	key    *Key
	public crypto.PublicKey
}

// Public implements crypto.Signer.
func (s signer) Public() crypto.PublicKey { return s.public }

// Sign implements crypto.Signer.
func (s signer) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	got, err := tpm2.Sign{
		KeyHandle:  s.key.auth(),
		Digest:     tpm2.TPM2BDigest{Buffer: bytes.Clone(digest)},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(s.key.tpm)
	if err != nil {
		return nil, err
	}
	sig, err := got.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)})
}
