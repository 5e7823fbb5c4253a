package attest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/attest/tpmtest"
)

func trust(m *tpmtest.TPM) attest.TPMOptions {
	return attest.TPMOptions{Anchors: []attest.Anchor{{Certificate: m.Root}}, Now: time.Now()}
}

// session is a device that has answered its challenge well.
type session struct {
	maker  *tpmtest.TPM
	device *tpmtest.Device
	o      attest.TPMOptions
	sent   attest.TPMChallenge
	want   attest.TPMExpectation
	ev     attest.TPMEvidence
}

func open(t *testing.T, kind tpmtest.EK) *session {
	t.Helper()
	m := tpmtest.Start(t)
	s := &session{maker: m, device: m.Device(t, kind), o: trust(m)}
	if s.device.EKCertificate == nil {
		s.o = attest.TPMOptions{RegisteredEK: [][32]byte{ekHash(s.device.EK.Public)}, Now: time.Now()}
	}
	var err error
	if s.sent, s.want, err = attest.ChallengeTPM(s.device.Identity(), s.o); err != nil {
		t.Fatalf("ChallengeTPM: %v", err)
	}
	s.ev = s.device.Answer(t, s.sent)
	return s
}

func (s *session) appraise(t *testing.T, ev attest.TPMEvidence) (attest.TPMResult, error) {
	t.Helper()
	return attest.AppraiseTPM(ev, s.device.Key.PublicKey(t), s.want, s.o)
}

// ekHash is the output of sha256sum for the file of tpm2_createek.
func ekHash(area []byte) [32]byte {
	return sha256.Sum256(append([]byte{byte(len(area) >> 8), byte(len(area))}, area...))
}

// refused wants an error of this code with this in it, and a next step.
func refused(t *testing.T, err error, code countersign.Code, text string) {
	t.Helper()
	if got := countersign.CodeOf(err); got != code || !strings.Contains(err.Error(), text) {
		t.Fatalf("got %q %v, want %q with %q", got, err, code, text)
	}
	if countersign.Public(err).Next == "" {
		t.Errorf("refusal %q has no next step", err)
	}
}

func TestTPMProvesTheKeyOfTheRequest(t *testing.T) {
	for name, kind := range map[string]tpmtest.EK{"RSA 2048": tpmtest.RSA, "P-256 registered": tpmtest.P256, "P-384": tpmtest.P384} {
		t.Run(name, func(t *testing.T) {
			s := open(t, kind)
			got, err := s.appraise(t, s.ev)
			if err != nil {
				t.Fatalf("AppraiseTPM: %v", err)
			}
			if got.EKHash != ekHash(s.device.EK.Public) || len(got.RegistrationID) != 52 {
				t.Errorf("EK: got %x %q", got.EKHash, got.RegistrationID)
			}
			if hex.EncodeToString(got.AKName) != hex.EncodeToString(s.device.AK.Handle.Name.Buffer) {
				t.Errorf("AK name: got %x, want the TPM's %x", got.AKName, s.device.AK.Handle.Name.Buffer)
			}
			if hex.EncodeToString(got.KeyName) != hex.EncodeToString(s.device.Key.Handle.Name.Buffer) {
				t.Errorf("key name: got %x, want the TPM's %x", got.KeyName, s.device.Key.Handle.Name.Buffer)
			}
			withCertificate := kind != tpmtest.P256
			if got.Registered == withCertificate || (got.Model.Model == "swtpm") != withCertificate || (got.Model.Manufacturer == "id:00001014") != withCertificate {
				t.Errorf("got %+v", got.TPMIdentity)
			}
			signsARequest(t, s.device.Key)
		})
	}
}

// signsARequest shows that the attested key is good for a certification request.
func signsARequest(t *testing.T, k *tpmtest.Key) {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "pump-7"}}, k.Signer(t))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil {
		t.Errorf("the TPM's request does not verify: %v", err)
	}
}

// TestTPMRegistrationIDIsAzures holds the id to what azure-iot-security-tpm 1.9.3
// computed for an endorsement key of this modulus.
func TestTPMRegistrationIDIsAzures(t *testing.T) {
	text, err := os.ReadFile("testdata/azure-iot-security-tpm-1.9.3/ek.hex")
	if err != nil {
		t.Fatal(err)
	}
	ek, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	const want = "u42lsggjk3x2zjlvlurfvwoisgpgmfiyafizkbvkejz6earvqera"
	if got := attest.RegistrationIDOf(ek[2:]); got != want {
		t.Errorf("registration id: got %q, want %q", got, want)
	}
	// The modulus is of random octets and no key; a sound one has the id of its own area.
	ek2 := soundEK(t)
	ev := attest.TPMEvidence{AKPublic: softAK(t, nil)}
	for _, ev.EKPublic = range [][]byte{ek2, ek2[2:]} {
		got, err := attest.IdentifyTPM(ev, attest.TPMOptions{RegisteredEK: [][32]byte{sha256.Sum256(ek2)}})
		if err != nil || got.RegistrationID != attest.RegistrationIDOf(ek2[2:]) || !got.Registered {
			t.Errorf("IdentifyTPM: got %q %v", got.RegistrationID, err)
		}
	}
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(ek[len(ek)-256:]), E: 65537}
	if area, err := attest.EKArea(pub); err != nil || hex.EncodeToString(area) != hex.EncodeToString(ek) {
		t.Errorf("EKArea: got %x %v", area, err)
	}
}

func octets(t testing.TB, digits string) []byte {
	t.Helper()
	b, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// soundEK is the TPM2B_PUBLIC of an endorsement key that is in no TPM.
func soundEK(t testing.TB) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	area, err := attest.EKArea(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return area
}

// softAK is a well-formed attestation key that is in no TPM.
func softAK(t testing.TB, change func(*tpm2.TPMTPublic)) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	attributes := tpmtest.KeyAttributes
	attributes.Restricted = true
	p := tpmtest.Template(attributes, "")
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	if change != nil {
		change(&p)
	}
	return tpm2.Marshal(p)
}

func TestTPMRefusesWhatItDoesNotProve(t *testing.T) {
	s := open(t, tpmtest.RSA)
	other := tpmtest.Start(t).Device(t, tpmtest.RSA)
	device := s.device

	second := device.Create(t, tpm2.TPMRHOwner, tpmtest.Template(tpmtest.KeyAttributes, "another key"))
	secondInfo, secondSig := device.Certify(t, second, s.want.Nonce)
	device.Flush(t, second)
	otherInfo, otherSig := other.Certify(t, other.Key, s.want.Nonce)
	quote, quoteSig, _ := device.Quote(t, s.want.Nonce, 0)
	staleInfo, staleSig := device.Certify(t, device.Key, []byte("the nonce of a session before"))

	for name, tt := range map[string]struct {
		change func(*attest.TPMEvidence)
		code   countersign.Code
		text   string
	}{
		"another EK":               {func(e *attest.TPMEvidence) { e.EKPublic = other.EK.Public }, countersign.Misconfigured, "for another endorsement key"},
		"another EK with its cert": {func(e *attest.TPMEvidence) { e.EKPublic, e.EKCertificate = other.EK.Public, other.EKCertificate }, countersign.CertUnknown, ""},
		"another AK":               {func(e *attest.TPMEvidence) { e.AKPublic = other.AK.Public }, countersign.Misconfigured, "another attestation key"},
		"unrestricted AK":          {func(e *attest.TPMEvidence) { e.AKPublic = device.Key.Public }, countersign.Misconfigured, "not a restricted signing key"},
		"EK as AK":                 {func(e *attest.TPMEvidence) { e.AKPublic = device.EK.Public }, countersign.Misconfigured, "not a restricted signing key"},
		"AK as EK":                 {func(e *attest.TPMEvidence) { e.EKPublic = device.AK.Public }, countersign.Misconfigured, "default template"},
		"no AK":                    {func(e *attest.TPMEvidence) { e.AKPublic = nil }, countersign.Unauthenticated, "has no attestation key"},
		"no EK certificate":        {func(e *attest.TPMEvidence) { e.EKCertificate = nil }, countersign.NotAllowed, "not registered"},
		"no intermediate":          {func(e *attest.TPMEvidence) { e.EKChain = nil }, countersign.CertUnknown, ""},
		"too long a chain":         {func(e *attest.TPMEvidence) { e.EKChain = make([][]byte, 50) }, countersign.TooLarge, ""},
		"oversized certificate":    {func(e *attest.TPMEvidence) { e.EKCertificate = make([]byte, 9<<10) }, countersign.TooLarge, ""},
		"certificate cut off":      {func(e *attest.TPMEvidence) { e.EKCertificate = e.EKCertificate[:100] }, countersign.BadRequest, "malformed"},
		"no secret":                {func(e *attest.TPMEvidence) { e.Secret = nil }, countersign.BadCredential, "answer to the challenge is wrong"},
		"wrong secret":             {func(e *attest.TPMEvidence) { e.Secret = make([]byte, 32) }, countersign.BadCredential, "answer to the challenge is wrong"},
		"nonce as secret":          {func(e *attest.TPMEvidence) { e.Secret = s.want.Nonce }, countersign.BadCredential, "answer to the challenge is wrong"},
		"another key attested": {func(e *attest.TPMEvidence) {
			e.KeyPublic, e.CertifyInfo, e.CertifySignature = second.Public, secondInfo, secondSig
		}, countersign.Misconfigured, "for another key"},
		"certify of another key": {func(e *attest.TPMEvidence) { e.CertifyInfo, e.CertifySignature = secondInfo, secondSig }, countersign.Misconfigured, "about another key"},
		"signed by another AK":   {func(e *attest.TPMEvidence) { e.CertifyInfo, e.CertifySignature = otherInfo, otherSig }, countersign.Misconfigured, "not signed by its attestation key"},
		"quote as certify":       {func(e *attest.TPMEvidence) { e.CertifyInfo, e.CertifySignature = quote, quoteSig }, countersign.Misconfigured, "another kind"},
		"replay":                 {func(e *attest.TPMEvidence) { e.CertifyInfo, e.CertifySignature = staleInfo, staleSig }, countersign.Misconfigured, "not of this session"},
		"tampered statement":     {func(e *attest.TPMEvidence) { e.CertifyInfo = flip(e.CertifyInfo, len(e.CertifyInfo)-1) }, countersign.Misconfigured, "not signed"},
		"tampered signature":     {func(e *attest.TPMEvidence) { e.CertifySignature = flip(e.CertifySignature, len(e.CertifySignature)-1) }, countersign.Misconfigured, "not signed"},
		"another hash":           {func(e *attest.TPMEvidence) { e.CertifySignature = flip(e.CertifySignature, 3) }, countersign.Misconfigured, "not signed"},
		"SHA-1 signature":        {func(e *attest.TPMEvidence) { e.CertifySignature = set(e.CertifySignature, 3, 4) }, countersign.Misconfigured, "not signed"},
		"not made by a TPM":      {func(e *attest.TPMEvidence) { e.CertifyInfo = flip(e.CertifyInfo, 0) }, countersign.Misconfigured, "not made by a TPM"},
		"statement cut off":      {func(e *attest.TPMEvidence) { e.CertifyInfo = e.CertifyInfo[:len(e.CertifyInfo)-1] }, countersign.BadRequest, "malformed"},
		"statement with surplus": {func(e *attest.TPMEvidence) {
			e.CertifyInfo = append(slices.Clip(e.CertifyInfo), 0)
		}, countersign.BadRequest, "malformed"},
		"oversized statement": {func(e *attest.TPMEvidence) { e.CertifyInfo = make([]byte, 2000) }, countersign.TooLarge, ""},
		"signature cut off":   {func(e *attest.TPMEvidence) { e.CertifySignature = e.CertifySignature[:20] }, countersign.BadRequest, "malformed"},
		"no signature":        {func(e *attest.TPMEvidence) { e.CertifySignature = nil }, countersign.Unauthenticated, "no key certification's signature"},
		"key cut off":         {func(e *attest.TPMEvidence) { e.KeyPublic = e.KeyPublic[:60] }, countersign.BadRequest, "malformed"},
		"oversized key":       {func(e *attest.TPMEvidence) { e.KeyPublic = make([]byte, 2000) }, countersign.TooLarge, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ev := s.ev
			tt.change(&ev)
			_, err := s.appraise(t, ev)
			refused(t, err, tt.code, tt.text)
		})
	}
	if _, err := s.appraise(t, s.ev); err != nil {
		t.Errorf("the evidence that all were made from: %v", err)
	}
}

func flip(b []byte, i int) []byte { return set(b, i, b[i]^1) }

func set(b []byte, i int, to byte) []byte {
	c := append([]byte{}, b...)
	c[i] = to
	return c
}

func TestTPMRefusesKeysThatCouldBeElsewhere(t *testing.T) {
	s := open(t, tpmtest.RSA)
	d := s.device
	d.Flush(t, d.Key)
	soft, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		make func() *tpmtest.Key
		text string
	}{
		"not fixedTPM": {func() *tpmtest.Key {
			a := tpmtest.KeyAttributes
			a.FixedTPM, a.FixedParent = false, false
			return d.Create(t, tpm2.TPMRHOwner, tpmtest.Template(a, "duplicable"))
		}, "fixedTPM"},
		"software key": {func() *tpmtest.Key {
			return d.Import(t, soft, tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true})
		}, "fixedTPM"},
		"restricted": {func() *tpmtest.Key {
			a := tpmtest.KeyAttributes
			a.Restricted = true
			return d.Create(t, tpm2.TPMRHOwner, tpmtest.Template(a, "restricted"))
		}, "cannot sign"},
	} {
		t.Run(name, func(t *testing.T) {
			k := tt.make()
			defer d.Flush(t, k)
			ev := s.ev
			ev.KeyPublic = k.Public
			ev.CertifyInfo, ev.CertifySignature = d.Certify(t, k, s.want.Nonce)
			_, err := attest.AppraiseTPM(ev, k.PublicKey(t), s.want, s.o)
			refused(t, err, countersign.Misconfigured, tt.text)
		})
	}
	t.Run("software key that claims to be fixed", func(t *testing.T) {
		k := d.Import(t, soft, tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true})
		defer d.Flush(t, k)
		claim, err := tpm2.Unmarshal[tpm2.TPMTPublic](k.Public)
		if err != nil {
			t.Fatal(err)
		}
		claim.ObjectAttributes = tpmtest.KeyAttributes
		ev := s.ev
		ev.KeyPublic = tpm2.Marshal(*claim)
		ev.CertifyInfo, ev.CertifySignature = d.Certify(t, k, s.want.Nonce)
		_, err = attest.AppraiseTPM(ev, soft.Public(), s.want, s.o)
		refused(t, err, countersign.Misconfigured, "about another key")
	})
}

func TestTPMChallengeOpensOnlyInItsChip(t *testing.T) {
	s := open(t, tpmtest.RSA)
	other := tpmtest.Start(t).Device(t, tpmtest.RSA)
	if _, err := other.Activate(s.sent); err == nil {
		t.Error("another TPM opened the challenge")
	}
	// The same chip with another AK: the name is part of what protects the credential.
	d := s.device
	d.Flush(t, d.Key)
	restricted := tpmtest.KeyAttributes
	restricted.Restricted = true
	first := d.AK
	d.AK = d.Create(t, tpm2.TPMRHOwner, tpmtest.Template(restricted, "second attestation key"))
	if _, err := d.Activate(s.sent); err == nil {
		t.Error("another AK opened the challenge")
	}
	d.AK = first
	for name, c := range map[string]attest.TPMChallenge{
		"credential": {Credential: flip(s.sent.Credential, 40), EncryptedSecret: s.sent.EncryptedSecret},
		"secret":     {Credential: s.sent.Credential, EncryptedSecret: flip(s.sent.EncryptedSecret, 40)},
	} {
		if _, err := d.Activate(c); err == nil {
			t.Errorf("a tampered %s was opened", name)
		}
	}
	if _, err := d.Activate(s.sent); err != nil {
		t.Errorf("the challenge itself: %v", err)
	}
}

func TestTPMNeedsAnOpenChallenge(t *testing.T) {
	s := open(t, tpmtest.RSA)
	for name, tt := range map[string]struct {
		want attest.TPMExpectation
		code countersign.Code
	}{
		"none":     {code: countersign.BadRequest},
		"no nonce": {attest.TPMExpectation{SecretHash: s.want.SecretHash, EKHash: s.want.EKHash, AKName: s.want.AKName}, countersign.BadRequest},
		"later": {attest.TPMExpectation{
			Nonce: []byte("a later session's nonce, 32 octet"), SecretHash: s.want.SecretHash, EKHash: s.want.EKHash, AKName: s.want.AKName,
		}, countersign.Misconfigured},
	} {
		_, err := attest.AppraiseTPM(s.ev, s.device.Key.PublicKey(t), tt.want, s.o)
		if countersign.CodeOf(err) != tt.code {
			t.Errorf("%s: got %v", name, err)
		}
	}
	next, want, err := attest.ChallengeTPM(s.device.Identity(), s.o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := attest.AppraiseTPM(s.ev, s.device.Key.PublicKey(t), want, s.o); countersign.CodeOf(err) != countersign.BadCredential {
		t.Errorf("the answer to the challenge before: got %v", err)
	}
	if _, err := attest.AppraiseTPM(s.device.Answer(t, next), nil, want, s.o); countersign.CodeOf(err) != countersign.Misconfigured {
		t.Errorf("no request's key: got %v", err)
	}
}

func TestTPMPCRPolicy(t *testing.T) {
	s := open(t, tpmtest.RSA)
	s.device.Extend(t, 7, "secure boot on")
	quote, sig, values := s.device.Quote(t, s.want.Nonce, 0, 7)
	s.ev.Quote, s.ev.QuoteSignature, s.ev.PCRs = quote, sig, values
	s.o.PCRs = map[int][]byte{7: values[7]}
	got, err := s.appraise(t, s.ev)
	if err != nil || !got.PCRs {
		t.Fatalf("AppraiseTPM: got %+v %v", got, err)
	}
	stale, staleSig, _ := s.device.Quote(t, []byte("a session before"), 0, 7)
	partial, partialSig, partialValues := s.device.Quote(t, s.want.Nonce, 0)
	s.device.Extend(t, 7, "another boot loader")
	changed, changedSig, changedValues := s.device.Quote(t, s.want.Nonce, 0, 7)
	for name, tt := range map[string]struct {
		change func(*attest.TPMEvidence)
		code   countersign.Code
		text   string
	}{
		"changed":  {func(e *attest.TPMEvidence) { e.Quote, e.QuoteSignature, e.PCRs = changed, changedSig, changedValues }, countersign.NotAllowed, "PCR 7 differs"},
		"forged":   {func(e *attest.TPMEvidence) { e.Quote, e.QuoteSignature = changed, changedSig }, countersign.Misconfigured, "not the ones that the TPM quoted"},
		"stale":    {func(e *attest.TPMEvidence) { e.Quote, e.QuoteSignature = stale, staleSig }, countersign.Misconfigured, "not of this session"},
		"partial":  {func(e *attest.TPMEvidence) { e.Quote, e.QuoteSignature, e.PCRs = partial, partialSig, partialValues }, countersign.Misconfigured, "leaves out PCR 7"},
		"no value": {func(e *attest.TPMEvidence) { e.PCRs = map[int][]byte{7: values[7]} }, countersign.BadRequest, "PCR 0"},
		"none":     {func(e *attest.TPMEvidence) { e.Quote = nil }, countersign.Unauthenticated, "no quote"},
		"certify":  {func(e *attest.TPMEvidence) { e.Quote, e.QuoteSignature = e.CertifyInfo, e.CertifySignature }, countersign.Misconfigured, "another kind"},
	} {
		t.Run(name, func(t *testing.T) {
			ev := s.ev
			tt.change(&ev)
			_, err := s.appraise(t, ev)
			refused(t, err, tt.code, tt.text)
		})
	}
	for i, v := range map[int][]byte{24: values[7], -1: values[7], 0: values[7][:20]} {
		if got := countersign.CodeOf(attest.CheckPCRs(map[int][]byte{i: v})); got != countersign.BadRequest {
			t.Errorf("CheckPCRs %d with %d octets: got %q", i, len(v), got)
		}
	}
}

func TestTPMAttestationKeyMustBeRestrictedAndStrong(t *testing.T) {
	ek := soundEK(t)
	o := attest.TPMOptions{RegisteredEK: [][32]byte{sha256.Sum256(ek)}}
	for name, tt := range map[string]struct {
		change func(*tpm2.TPMTPublic)
		code   countersign.Code
		text   string
	}{
		"a published key": {func(p *tpm2.TPMTPublic) { // RFC 6979, A.2.5
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: octets(t, "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6")},
				Y: tpm2.TPM2BECCParameter{Buffer: octets(t, "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299")},
			})
		}, countersign.WeakKey, "published in RFC 6979"},
		"unrestricted":    {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false }, countersign.Misconfigured, "restricted"},
		"not signing":     {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false }, countersign.Misconfigured, "restricted signing"},
		"decrypting":      {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true }, countersign.Misconfigured, "restricted signing"},
		"duplicable":      {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }, countersign.Misconfigured, "fixedTPM"},
		"movable":         {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false }, countersign.Misconfigured, "fixedParent"},
		"made elsewhere":  {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false }, countersign.Misconfigured, "sensitiveDataOrigin"},
		"SHA-1 name":      {func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }, countersign.WeakKey, "hash"},
		"SHA-1 signature": {func(p *tpm2.TPMTPublic) { ecdsaWith(p, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA1, tpm2.TPMECCNistP256) }, countersign.WeakKey, "hash"},
		"P-224":           {func(p *tpm2.TPMTPublic) { ecdsaWith(p, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256, tpm2.TPMECCNistP224) }, countersign.WeakKey, "curve"},
		"no scheme":       {func(p *tpm2.TPMTPublic) { ecdsaWith(p, tpm2.TPMAlgNull, 0, tpm2.TPMECCNistP256) }, countersign.WeakKey, "scheme"},
		"off its curve": {func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
			})
		}, countersign.WeakKey, "curve"},
		"RSA 1024": {func(p *tpm2.TPMTPublic) {
			modulus := make([]byte, 128)
			modulus[0], modulus[127] = 0x80, 1
			p.Type = tpm2.TPMAlgRSA
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 1024})
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: modulus})
		}, countersign.WeakKey, "RSA"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := attest.IdentifyTPM(attest.TPMEvidence{EKPublic: ek, AKPublic: softAK(t, tt.change)}, o)
			refused(t, err, tt.code, tt.text)
		})
	}
	variants := map[string][]byte{
		"authPolicy of its own": set(ek, 20, ek[20]^1),
		"explicit exponent":     set(ek, len(ek)-260, 1),
		"user with auth":        set(ek, 9, ek[9]|0x40),
	}
	for name, v := range variants {
		t.Run("EK: "+name, func(t *testing.T) {
			_, err := attest.IdentifyTPM(attest.TPMEvidence{EKPublic: v, AKPublic: softAK(t, nil)}, attest.TPMOptions{RegisteredEK: [][32]byte{sha256.Sum256(v)}})
			if err == nil {
				t.Error("one chip could have two registration ids")
			}
		})
	}
}

func ecdsaWith(p *tpm2.TPMTPublic, scheme tpm2.TPMAlgID, hash tpm2.TPMIAlgHash, curve tpm2.TPMECCCurve) {
	parms := &tpm2.TPMSECCParms{CurveID: curve}
	parms.Scheme.Scheme = scheme
	if scheme == tpm2.TPMAlgECDSA {
		parms.Scheme.Details = tpm2.NewTPMUAsymScheme(scheme, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash})
	}
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, parms)
}
