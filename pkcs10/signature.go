package pkcs10

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"math/big"

	_ "crypto/sha256" // hash functions of signatures
	_ "crypto/sha512"

	"github.com/countersign-iot/countersign"
)

// maxVerifyBits bounds what one RSA verification can cost. Package ca accepts
// smaller keys only; the bound is for other callers.
const maxVerifyBits = 8192

// Kinds of keys, as sentences name them.
const (
	kindRSA     = "RSA"
	kindECDSA   = "ECDSA"
	kindEd25519 = "Ed25519"
)

// scheme is a way to sign.
type scheme struct {
	name string
	kind string // of the key
	hash crypto.Hash
	pss  bool
	salt int // octets, for pss
}

// schemes are the accepted signature algorithms; RSASSA-PSS also has
// parameters to check. SHA-224 and shorter ones are weaker than the keys.
var schemes = map[string]scheme{
	"1.2.840.113549.1.1.11": {name: "sha256WithRSAEncryption", kind: kindRSA, hash: crypto.SHA256},
	"1.2.840.113549.1.1.12": {name: "sha384WithRSAEncryption", kind: kindRSA, hash: crypto.SHA384},
	"1.2.840.113549.1.1.13": {name: "sha512WithRSAEncryption", kind: kindRSA, hash: crypto.SHA512},
	"1.2.840.113549.1.1.10": {name: "RSASSA-PSS", kind: kindRSA, pss: true},
	"1.2.840.10045.4.3.2":   {name: "ecdsa-with-SHA256", kind: kindECDSA, hash: crypto.SHA256},
	"1.2.840.10045.4.3.3":   {name: "ecdsa-with-SHA384", kind: kindECDSA, hash: crypto.SHA384},
	"1.2.840.10045.4.3.4":   {name: "ecdsa-with-SHA512", kind: kindECDSA, hash: crypto.SHA512},
	"1.3.101.112":           {name: "Ed25519", kind: kindEd25519},
}

// CheckSignature reports whether the request is signed with the private half of
// its public key, which proves possession of it. The error has the code of the
// reason: BadRequest for an algorithm that is not accepted or a signature that is
// malformed, WeakKey for a key that cannot be used, BadSignature for a signature
// that was made by another key or over another request.
func (r *Request) CheckSignature() error {
	key, err := r.Key()
	if err != nil {
		return err
	}
	s, err := readScheme(r.signedBy)
	if err != nil {
		return err
	}
	if kind := kindOf(key); kind != s.kind {
		return countersign.Errorf(countersign.BadSignature, "the certification request is signed with %s, but its public key is an %s key", s.name, kind).
			WithNext("sign the request with the private half of the key that it asks a certificate for")
	}
	signature, err := wholeOctets(r.signature)
	if err != nil {
		return malformed("signature", err)
	}
	return s.verify(key, r.RawTBS, signature)
}

func kindOf(key crypto.PublicKey) string {
	switch key.(type) {
	case *rsa.PublicKey:
		return kindRSA
	case *ecdsa.PublicKey:
		return kindECDSA
	case ed25519.PublicKey:
		return kindEd25519
	}
	return "unknown"
}

func readScheme(e element) (scheme, error) {
	id, parameters, err := readAlgorithm(e)
	if err != nil {
		return scheme{}, malformed("signature algorithm", err)
	}
	s, ok := schemes[id.String()]
	if !ok {
		return scheme{}, refusedScheme(nameOf(algorithmNames, id.String()))
	}
	if s.pss {
		return readPSS(s, parameters)
	}
	return s, nil // parameters of the others have no meaning, whether NULL, absent or something else
}

func refusedScheme(name string) error {
	return countersign.Errorf(countersign.BadRequest, "the certification request is signed with %s, which is not accepted", name).
		WithNext("sign it with SHA-256, SHA-384 or SHA-512, or with Ed25519")
}

func (s *scheme) verify(key crypto.PublicKey, tbs, signature []byte) error {
	digest := tbs
	if s.hash != 0 {
		h := s.hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	good := false
	var cause error
	switch k := key.(type) {
	case *rsa.PublicKey:
		switch {
		case k.N.BitLen() > maxVerifyBits:
			return refusedKey("the RSA public key of %d bits is over %d", k.N.BitLen(), maxVerifyBits)
		case s.pss:
			cause = rsa.VerifyPSS(k, s.hash, digest, signature, &rsa.PSSOptions{SaltLength: s.salt})
		default:
			cause = rsa.VerifyPKCS1v15(k, s.hash, digest, signature)
		}
		good = cause == nil
	case *ecdsa.PublicKey:
		r, t, err := readECDSA(signature, (k.Curve.Params().BitSize+7)/8)
		if err != nil {
			return err
		}
		good = ecdsa.Verify(k, digest, r, t)
	case ed25519.PublicKey:
		good = ed25519.Verify(k, digest, signature)
	}
	if !good {
		return countersign.Errorf(countersign.BadSignature, "the certification request is not signed with the key it asks a certificate for, or was changed after it was signed").
			WithNext("sign the request with the private half of its key, and send it unchanged").WithCause(cause)
	}
	return nil
}

// readECDSA reads an ECDSA-Sig-Value (RFC 3279, 2.2.3); size is that of one of
// its numbers in octets. Needless leading zeros are accepted.
func readECDSA(signature []byte, size int) (r, s *big.Int, err error) {
	var numbers []*big.Int
	what := ""
	seq, _, err := readElement(signature)
	if err != nil || seq.tag != tagSequence {
		what = "not a SEQUENCE"
	}
	for in := (list{seq.body}); what == "" && len(numbers) < 2; {
		n, err := in.nextOf(tagInteger)
		switch {
		case err != nil:
			what = "not a SEQUENCE of two INTEGERs"
		case len(n.body) == 0 || n.body[0]&0x80 != 0:
			what = "of a negative number"
		case len(minimal(n.body)) > size+1:
			what = "of a number that is too large for the key"
		}
		numbers = append(numbers, new(big.Int).SetBytes(n.body))
	}
	if what == "" {
		return numbers[0], numbers[1], nil
	}
	if len(signature) == 2*size {
		what = "r and s side by side instead of a SEQUENCE"
	}
	return nil, nil, countersign.Errorf(countersign.BadRequest, "the ECDSA signature of the certification request is %s", what).
		WithNext("write it as SEQUENCE of the two INTEGERs r and s, with a zero octet before one that would be negative (RFC 3279, 2.2.3)")
}

var errNumber = errors.New("a number in it is not between 0 and 65535")

var oidMGF1 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}

// hashes are the hash functions accepted in RSASSA-PSS.
var hashes = map[string]crypto.Hash{
	"2.16.840.1.101.3.4.2.1": crypto.SHA256,
	"2.16.840.1.101.3.4.2.2": crypto.SHA384,
	"2.16.840.1.101.3.4.2.3": crypto.SHA512,
}

// readPSS reads RSASSA-PSS-params (RFC 4055, 3.1). Any length of salt is
// accepted; mask and message must use the same hash function.
func readPSS(s scheme, e element) (scheme, error) {
	hash, mask := "1.3.14.3.2.26", "1.3.14.3.2.26" // the defaults: SHA-1, salt of 20 octets, trailer 1
	s.salt = 20
	trailer := 1
	if e.tag == tagSequence {
		for in := (list{e.body}); !in.empty(); {
			field, err := in.next()
			if err == nil {
				switch field.tag {
				case tagContext0:
					hash, err = readHash(field.body)
				case tagContext0 + 1:
					mask, err = readMask(field.body)
				case tagContext0 + 2:
					s.salt, err = readSmall(field.body)
				case tagContext0 + 3:
					trailer, err = readSmall(field.body)
				}
			}
			if err != nil {
				return s, malformed("RSASSA-PSS parameters", err)
			}
		}
	}
	name := func(id string) string { return nameOf(hashNames, id) }
	var ok bool
	switch s.hash, ok = hashes[hash]; {
	case !ok:
		return s, refusedScheme("RSASSA-PSS (" + name(hash) + ")")
	case mask != hash:
		return s, refusedScheme("RSASSA-PSS (" + name(hash) + ", with a mask of " + name(mask) + ")")
	case trailer != 1:
		return s, refusedScheme("RSASSA-PSS with another trailer than 1")
	}
	return s, nil
}

func readHash(in []byte) (string, error) {
	e, _, err := readElement(in)
	if err != nil {
		return "", err
	}
	id, _, err := readAlgorithm(e)
	return id.String(), err
}

// readMask reads the hash function of a mask generation function, which is MGF1
// of it; another function is returned as if it were the hash function.
func readMask(in []byte) (string, error) {
	e, _, err := readElement(in)
	if err != nil {
		return "", err
	}
	id, parameters, err := readAlgorithm(e)
	if err != nil || !id.Equal(oidMGF1) {
		return id.String(), err
	}
	return readHash(parameters.raw)
}

// readSmall reads an INTEGER from 0 to 65535.
func readSmall(in []byte) (int, error) {
	e, err := (&list{in}).nextOf(tagInteger)
	if err != nil {
		return 0, err
	}
	b := minimal(e.body)
	if len(b) == 0 || b[0]&0x80 != 0 || len(b) > 2 {
		return 0, errNumber
	}
	n := 0
	for _, c := range b {
		n = n<<8 | int(c)
	}
	return n, nil
}
