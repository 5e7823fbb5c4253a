package pkcs10

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"

	"github.com/countersign-iot/countersign"
)

var (
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEC      = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
)

// oneNull are the parameters of rsaEncryption (RFC 4055, 1.2).
var oneNull = []byte{tagNull, 0}

// spki is a SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) as it was sent.
type spki struct {
	algorithm  asn1.ObjectIdentifier
	parameters element // zero if there are none
	key        []byte  // the octets of the BIT STRING
}

func readSPKI(e element) (spki, error) {
	var s spki
	in := list{e.body}
	algorithm, err := in.nextOf(tagSequence)
	if err != nil {
		return s, err
	}
	if s.algorithm, s.parameters, err = readAlgorithm(algorithm); err != nil {
		return s, err
	}
	bits, err := in.nextOf(tagBitString)
	if err != nil {
		return s, err
	}
	s.key, err = wholeOctets(bits)
	return s, err
}

// readAlgorithm reads an AlgorithmIdentifier (RFC 5280, 4.1.1.2).
func readAlgorithm(e element) (id asn1.ObjectIdentifier, parameters element, err error) {
	in := list{e.body}
	if id, err = readOID(&in); err != nil || in.empty() {
		return id, parameters, err
	}
	parameters, err = in.next()
	return id, parameters, err
}

var errBits = errors.New("a bit string in it is not of whole octets")

// wholeOctets returns the content of a BIT STRING without unused bits.
func wholeOctets(bits element) ([]byte, error) {
	if len(bits.body) == 0 || bits.body[0] != 0 {
		return nil, errBits
	}
	return bits.body[1:], nil
}

// readKey parses a public key and returns it with its canonical DER. Parameters
// without a meaning, a NULL too many or too few, are ignored.
func readKey(e element) (key crypto.PublicKey, der []byte, err error) {
	s, err := readSPKI(e)
	if err != nil {
		return nil, nil, malformed("public key", err)
	}
	var parameters, bits []byte
	switch {
	case s.algorithm.Equal(oidRSA):
		parameters = oneNull
		bits, err = s.rsa()
	case s.algorithm.Equal(oidEC):
		bits = s.key
		parameters, err = s.curve()
	case s.algorithm.Equal(oidEd25519):
		bits, err = s.ed25519()
	default:
		err = refusedKey("the algorithm %s is not accepted for the public key of a certification request", nameOf(algorithmNames, s.algorithm.String()))
	}
	if err != nil {
		return nil, nil, err
	}
	der = s.encode(parameters, bits)
	if key, err = x509.ParsePKIXPublicKey(der); err != nil { // an EC point that is not on its curve, an RSA exponent that is too large
		return nil, nil, refusedKey("the public key of the certification request is not a valid one: %s", strings.TrimPrefix(err.Error(), "x509: "))
	}
	return key, der, nil
}

// encode returns the key in DER with the given parameters and content.
func (s *spki) encode(parameters, bits []byte) []byte {
	id, _ := asn1.Marshal(s.algorithm) // it was parsed
	algorithm := encodeDER(tagSequence, append(id, parameters...))
	key := encodeDER(tagBitString, append([]byte{0}, bits...))
	return encodeDER(tagSequence, append(algorithm, key...))
}

// rsa returns the RSAPublicKey (RFC 8017, A.1.1) in DER. Integers with leading
// zeros are accepted.
func (s *spki) rsa() ([]byte, error) {
	seq, _, err := readElement(s.key)
	if err == nil && seq.tag != tagSequence {
		err = errors.New("it is not an RSAPublicKey")
	}
	var body []byte
	in := list{seq.body}
	for _, name := range []string{"modulus", "exponent"} {
		if err != nil {
			break
		}
		var n element
		if n, err = in.nextOf(tagInteger); err != nil {
			break
		}
		if len(n.body) == 0 || n.body[0]&0x80 != 0 {
			err = fmt.Errorf("its %s is not a positive number: a zero octet is missing before it", name)
		}
		body = append(body, encodeDER(tagInteger, minimal(n.body))...)
	}
	if err != nil {
		return nil, malformed("RSA public key", err)
	}
	return encodeDER(tagSequence, body), nil
}

// minimal returns a positive INTEGER's content without needless leading zeros.
func minimal(b []byte) []byte {
	for len(b) > 1 && b[0] == 0 && b[1]&0x80 == 0 {
		b = b[1:]
	}
	return b
}

// curveSizes are the octets of one coordinate on the curves whose keys are read.
var curveSizes = map[string]int{
	"1.2.840.10045.3.1.7": 32, // P-256
	"1.3.132.0.34":        48, // P-384
	"1.3.132.0.35":        66, // P-521
}

// curve returns the parameters of an EC key that names a known curve (RFC 5480,
// 2.1.1) and has its point in the uncompressed form (2.2).
func (s *spki) curve() ([]byte, error) {
	switch s.parameters.tag {
	case tagOID:
	case tagSequence:
		return nil, refusedKey("the EC public key spells out the parameters of its curve instead of naming it, which RFC 5480, 2.1.1 forbids")
	default:
		return nil, refusedKey("the EC public key names no curve")
	}
	id, err := readOID(&list{s.parameters.raw})
	if err != nil {
		return nil, malformed("curve of the public key", err)
	}
	size := curveSizes[id.String()]
	if size == 0 {
		return nil, refusedKey("the curve %s of the EC public key is not accepted", nameOf(curveNames, id.String()))
	}
	form := byte(0xff)
	if len(s.key) > 0 {
		form = s.key[0]
	}
	switch {
	case form == 2 || form == 3:
		return nil, refusedKey("the point of the EC public key is compressed, which is not accepted (RFC 5480, 2.2)")
	case form != 4 || len(s.key) != 1+2*size:
		return nil, refusedKey("the point of the EC public key is not two coordinates of %d octets after 0x04", size)
	}
	return asn1.Marshal(id)
}

// ed25519 returns the key's octets (RFC 8410, 4).
func (s *spki) ed25519() ([]byte, error) {
	if len(s.key) != ed25519.PublicKeySize {
		return nil, refusedKey("the Ed25519 public key has %d octets, not %d", len(s.key), ed25519.PublicKeySize)
	}
	return s.key, nil
}

func refusedKey(format string, args ...any) error {
	return countersign.Errorf(countersign.WeakKey, format, args...).
		WithNext("make a P-256, P-384, Ed25519 or RSA 2048-4096 key, an EC key with its curve named and its point uncompressed")
}
