package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // names and signatures with SHA-384 and SHA-512
	"encoding/base32"
	"encoding/binary"
	"errors"
	"math/big"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/weakkey"
)

const (
	// maxTPMPublic bounds a public area: RSA 4096 with a SHA-512 policy is under 700 octets.
	maxTPMPublic = 1 << 10
	// maxTPMAttest bounds a TPMS_ATTEST: names, nonce and digest of 66 octets
	// each and a selection of every bank are under 600.
	maxTPMAttest = 1 << 10
	// maxTPMSignature bounds a TPMT_SIGNATURE: RSA 4096 has 518 octets.
	maxTPMSignature = 1 << 10

	rsaExponent = 65537
)

// rsaSizes are the sizes that TPMs make and that are accepted; the largest bounds the cost of a signature.
var rsaSizes = []int{2048, 3072, 4096}

var errNotCanonical = errors.New("surplus octets, or values that have another encoding")

// tpmKey is a public area (TPMT_PUBLIC) of a key.
type tpmKey struct {
	area   []byte // TPMT_PUBLIC as received
	public *tpm2.TPMTPublic
	key    crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey
	name   []byte
}

// decodeTPM decodes a structure that must be exactly what a TPM would write: the decoder
// accepts surplus octets, which an attacker could use to change a hash.
func decodeTPM[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](data []byte,
) (*T, error) {
	v, err := tpm2.Unmarshal[T, P](data)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(*v), data) {
		return nil, errNotCanonical
	}
	return v, nil
}

// checkTPMSize checks a part of the evidence against its bound.
func checkTPMSize(what string, data []byte, limit int) error {
	switch {
	case len(data) == 0:
		return countersign.Errorf(countersign.Unauthenticated, "the TPM's evidence has no %s", what).
			WithNext("send all parts of the TPM's evidence")
	case len(data) > limit:
		return countersign.Errorf(countersign.TooLarge, "the TPM's %s is larger than %d octets", what, limit).
			WithNext("send the structure that the TPM made, nothing around it")
	}
	return nil
}

func malformedTPM(what string, err error) *countersign.Error {
	return countersign.Errorf(countersign.BadRequest, "the TPM's %s is malformed", what).WithCause(err).
		WithNext("send the structure that the TPM made, as it is, in base64 where the protocol is text")
}

// parseTPMKey reads a public area, with or without a size before it. The two
// cannot be confused: no area is as short as its first two octets, the key's type,
// would be as a size. It refuses a key that is known to be weak.
func parseTPMKey(what string, data []byte, known *weakkey.Blocklist) (*tpmKey, error) {
	if err := checkTPMSize(what, data, maxTPMPublic); err != nil {
		return nil, err
	}
	if len(data) > 2 && int(binary.BigEndian.Uint16(data)) == len(data)-2 {
		data = data[2:]
	}
	public, err := decodeTPM[tpm2.TPMTPublic](data)
	if err != nil {
		return nil, malformedTPM(what, err)
	}
	k := &tpmKey{area: bytes.Clone(data), public: public}
	h, err := tpmHash(public.NameAlg)
	if err != nil {
		return nil, weakTPM(what, err.Error())
	}
	k.name = digestOf(h, k.area, binary.BigEndian.AppendUint16(nil, uint16(public.NameAlg)))
	if k.key, err = publicKey(public); err != nil {
		return nil, weakTPM(what, err.Error())
	}
	if err := known.Check(k.key); err != nil {
		e := countersign.Public(err)
		return nil, countersign.Errorf(e.Code, "the TPM's %s: %s", what, e.Message).WithNext(e.Next).WithCause(err)
	}
	return k, nil
}

func weakTPM(what, why string) *countersign.Error {
	return countersign.Errorf(countersign.WeakKey, "the TPM's %s %s", what, why).
		WithNext("use RSA from 2048 to 4096 bits, or P-256, P-384 or P-521, with SHA-256 or stronger")
}

// tpmHash returns the hash of an algorithm that may name keys and sign. SHA-1 may not.
func tpmHash(alg tpm2.TPMIAlgHash) (crypto.Hash, error) {
	switch alg {
	case tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA384, tpm2.TPMAlgSHA512:
		return alg.Hash()
	}
	return 0, errors.New("uses a hash algorithm that is not SHA-256, SHA-384 or SHA-512")
}

// digestOf appends the digest of data to prefix.
func digestOf(h crypto.Hash, data, prefix []byte) []byte {
	d := h.New()
	d.Write(data)
	return d.Sum(prefix)
}

func publicKey(p *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	switch p.Type {
	case tpm2.TPMAlgRSA:
		return rsaKey(p)
	case tpm2.TPMAlgECC:
		return eccKey(p)
	}
	return nil, errors.New("is neither RSA nor elliptic curve")
}

func rsaKey(p *tpm2.TPMTPublic) (*rsa.PublicKey, error) {
	parameters, err := p.Parameters.RSADetail()
	if err != nil {
		return nil, errors.New("has no RSA parameters")
	}
	modulus, err := p.Unique.RSA()
	if err != nil {
		return nil, errors.New("has no modulus")
	}
	n := new(big.Int).SetBytes(modulus.Buffer)
	bits := int(parameters.KeyBits)
	// An exponent of 0 means 65537 (Part 2, 12.2.3.5).
	exponent := parameters.Exponent == 0 || parameters.Exponent == rsaExponent
	if !slices.Contains(rsaSizes, bits) || n.BitLen() != bits || len(modulus.Buffer) != bits/8 || n.Bit(0) == 0 || !exponent {
		return nil, errors.New("is RSA of a size or exponent that is not accepted")
	}
	return &rsa.PublicKey{N: n, E: rsaExponent}, nil
}

func eccKey(p *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
	parameters, err := p.Parameters.ECCDetail()
	if err != nil {
		return nil, errors.New("has no curve")
	}
	point, err := p.Unique.ECC()
	if err != nil {
		return nil, errors.New("has no point")
	}
	var curve elliptic.Curve
	switch parameters.CurveID {
	case tpm2.TPMECCNistP256:
		curve = elliptic.P256()
	case tpm2.TPMECCNistP384:
		curve = elliptic.P384()
	case tpm2.TPMECCNistP521:
		curve = elliptic.P521()
	default:
		return nil, errors.New("is on a curve that is not accepted")
	}
	// Older TPMs leave leading zeros out.
	size := (curve.Params().BitSize + 7) / 8
	if len(point.X.Buffer) > size || len(point.Y.Buffer) > size {
		return nil, errors.New("has a coordinate that is too long")
	}
	uncompressed := make([]byte, 1+2*size)
	uncompressed[0] = 4
	copy(uncompressed[1+size-len(point.X.Buffer):], point.X.Buffer)
	copy(uncompressed[1+2*size-len(point.Y.Buffer):], point.Y.Buffer)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, uncompressed)
	if err != nil {
		return nil, errors.New("is not on its curve")
	}
	return key, nil
}

// is reports whether pub is this key.
func (k *tpmKey) is(pub crypto.PublicKey) bool {
	own, ok := k.key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub != nil && own.Equal(pub)
}

// hash returns the SHA-256 of the TPM2B_PUBLIC, by which an EK is registered.
func (k *tpmKey) hash() [sha256.Size]byte { return sha256.Sum256(sized(k.area)) }

// sized puts the two octets of a TPM2B's size before b, all of which are bounded far below 64 KiB.
func sized(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) //nolint:gosec // bounded when read or made
}

func registrationID(ek *tpmKey) string {
	sum := ek.hash()
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))
}

// parseEK reads an endorsement key of a default template. Only the key itself may
// differ from it; otherwise one chip could have as many registration ids as there are
// values for the rest, because the EK certificate and the challenge bind the key alone.
// For the same reason each kind of key has one template here.
func parseEK(data []byte, known *weakkey.Blocklist) (*tpmKey, error) {
	k, err := parseTPMKey("endorsement key", data, known)
	if err != nil {
		return nil, err
	}
	area, err := ekArea(k.key)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(area, k.area) {
		return nil, badTPM("the TPM's endorsement key is not of a default template").
			WithNext("create it with: tpm2_createek -G rsa, or -G ecc")
	}
	return k, nil
}

// EKArea returns the TPM2B_PUBLIC of the endorsement key with this public key, for
// devices that send only the key or a certificate: the default template determines
// the rest. Errors have code WeakKey.
func EKArea(pub crypto.PublicKey) ([]byte, error) {
	area, err := ekArea(pub)
	if err != nil {
		return nil, err
	}
	return sized(area), nil
}

func ekArea(pub crypto.PublicKey) ([]byte, error) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() == 2048 && k.E == rsaExponent {
			t := tpm2.RSAEKTemplate
			t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.FillBytes(make([]byte, 256))})
			return tpm2.Marshal(t), nil
		}
	case *ecdsa.PublicKey:
		t := tpm2.ECCEKTemplate
		if k.Curve == elliptic.P384() {
			t = p384EKTemplate()
		}
		if point, err := k.Bytes(); err == nil && (k.Curve == elliptic.P256() || k.Curve == elliptic.P384()) {
			x, y := point[1:1+len(point)/2], point[1+len(point)/2:]
			t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: x},
				Y: tpm2.TPM2BECCParameter{Buffer: y},
			})
			return tpm2.Marshal(t), nil
		}
	}
	return nil, weakTPM("endorsement key", "is not RSA 2048, P-256 or P-384").WithNext("use an endorsement key of a default template")
}

// p384EKTemplate is template H-3 (TCG EK Credential Profile, B.4.5): the digest is
// PolicyB with SHA-384.
func p384EKTemplate() tpm2.TPMTPublic {
	t := tpm2.ECCEKTemplate
	t.NameAlg = tpm2.TPMAlgSHA384
	t.ObjectAttributes.UserWithAuth = true
	t.AuthPolicy.Buffer = []byte{
		0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc,
		0xf5, 0xfd, 0x3a, 0x1a, 0x07, 0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4,
		0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca, 0xcb, 0x47, 0xba, 0x09,
		0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
	}
	t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Symmetric: tpm2.TPMTSymDefObject{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		CurveID: tpm2.TPMECCNistP384,
	})
	return t
}

// parseAK reads an attestation key. It must be restricted: such a key only signs
// structures that its TPM made, never data that imitates one.
func parseAK(data []byte, known *weakkey.Blocklist) (*tpmKey, error) {
	const what = "attestation key"
	k, err := parseTPMKey(what, data, known)
	if err != nil {
		return nil, err
	}
	if why := k.unbound(); why != "" {
		return nil, badTPM("the TPM's attestation key %s", why).WithNext("create it with tpm2_createak")
	}
	a := k.public.ObjectAttributes
	if !a.Restricted || !a.SignEncrypt || a.Decrypt {
		return nil, badTPM("the TPM's attestation key is not a restricted signing key").WithNext("create it with tpm2_createak")
	}
	if _, _, err := k.scheme(); err != nil {
		return nil, weakTPM(what, err.Error())
	}
	return k, nil
}

// parseAttestedKey reads the key of a certification request.
func parseAttestedKey(data []byte, known *weakkey.Blocklist) (*tpmKey, error) {
	k, err := parseTPMKey("key", data, known)
	if err != nil {
		return nil, err
	}
	const next = "create the key in the TPM with the attributes fixedtpm|fixedparent|sensitivedataorigin|sign and without restricted"
	if why := k.unbound(); why != "" {
		return nil, badTPM("the TPM's key %s", why).WithNext(next)
	}
	if a := k.public.ObjectAttributes; a.Restricted || !a.SignEncrypt {
		return nil, badTPM("the TPM's key cannot sign what a device has to sign").WithNext(next)
	}
	return k, nil
}

// unbound returns why a key might exist outside its TPM; empty if it cannot.
func (k *tpmKey) unbound() string {
	a := k.public.ObjectAttributes
	switch {
	case !a.FixedTPM:
		return "can be duplicated out of the TPM (fixedTPM is not set)"
	case !a.FixedParent:
		return "can be moved under another parent (fixedParent is not set)"
	case !a.SensitiveDataOrigin:
		return "was not made by the TPM (sensitiveDataOrigin is not set)"
	}
	return ""
}

// scheme is how a restricted key signs.
func (k *tpmKey) scheme() (alg tpm2.TPMAlgID, hash crypto.Hash, err error) {
	var details tpm2.TPMUAsymScheme
	if p, err := k.public.Parameters.RSADetail(); err == nil {
		alg, details = p.Scheme.Scheme, p.Scheme.Details
	} else if p, err := k.public.Parameters.ECCDetail(); err == nil {
		alg, details = p.Scheme.Scheme, p.Scheme.Details
	}
	var id tpm2.TPMIAlgHash
	switch alg {
	case tpm2.TPMAlgRSASSA:
		if s, err := details.RSASSA(); err == nil {
			id = s.HashAlg
		}
	case tpm2.TPMAlgRSAPSS:
		if s, err := details.RSAPSS(); err == nil {
			id = s.HashAlg
		}
	case tpm2.TPMAlgECDSA:
		if s, err := details.ECDSA(); err == nil {
			id = s.HashAlg
		}
	default:
		return 0, 0, errors.New("signs with a scheme that is not RSASSA, RSAPSS or ECDSA")
	}
	hash, err = tpmHash(id)
	return alg, hash, err
}
