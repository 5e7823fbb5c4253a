package pkcs10test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // hash functions of signatures
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"slices"
	"testing"
)

// der encodes one element.
func der(tag byte, parts ...[]byte) []byte {
	body := slices.Concat(parts...)
	out := []byte{tag}
	switch n := len(body); {
	case n < 0x80:
		out = append(out, byte(n))
	case n < 0x100:
		out = append(out, 0x81, byte(n))
	default:
		out = binary.BigEndian.AppendUint16(append(out, 0x82), uint16(n)) //nolint:gosec // no request here is longer
	}
	return append(out, body...)
}

// long encodes one element with a length of four octets, which BER allows.
func long(tag byte, parts ...[]byte) []byte {
	body := slices.Concat(parts...)
	return append(binary.BigEndian.AppendUint32([]byte{tag, 0x84}, uint32(len(body))), body...) //nolint:gosec // as above
}

// indefinite encodes one element of indefinite length.
func indefinite(tag byte, parts ...[]byte) []byte {
	return append(append([]byte{tag, 0x80}, slices.Concat(parts...)...), 0, 0)
}

func seq(parts ...[]byte) []byte { return der(0x30, parts...) }
func set(parts ...[]byte) []byte { return der(0x31, parts...) }

func oid(arcs ...int) []byte {
	b, err := asn1.Marshal(asn1.ObjectIdentifier(arcs))
	if err != nil {
		panic(err)
	}
	return b
}

var null = []byte{5, 0}

// Tags of strings.
const (
	utf8String      = 0x0c
	numericString   = 0x12
	printableString = 0x13
	t61String       = 0x14
	ia5String       = 0x16
	visibleString   = 0x1a
	generalString   = 0x1b
	universalString = 0x1c
	bmpString       = 0x1e
	octetString     = 0x04
)

// pair is an attribute of a name.
func pair(arc int, tag byte, text string) []byte {
	return seq(oid(2, 5, 4, arc), der(tag, []byte(text)))
}

// Arcs of attributes of a name, below 2.5.4.
const (
	commonName   = 3
	serialNumber = 5
	country      = 6
	organization = 10
	unit         = 11
)

// named is a subject of one common name.
func named(cn string) []byte { return seq(set(pair(commonName, utf8String, cn))) }

// widened writes ASCII with width octets a character, big-endian.
func widened(text string, width int) string {
	var out []byte
	for _, c := range []byte(text) {
		out = append(append(out, make([]byte, width-1)...), c)
	}
	return string(out)
}

// signer is a key with the parts of a request that it determines.
type signer struct {
	key       crypto.Signer
	spki      []byte
	algorithm []byte
	hash      crypto.Hash
}

var sha256ECDSA = seq(oid(1, 2, 840, 10045, 4, 3, 2))

func ecKey(t testing.TB, curve elliptic.Curve) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, spkiOf(t, key), sha256ECDSA, crypto.SHA256}
}

func edKey(t testing.TB) signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, spkiOf(t, key), seq(oid(1, 3, 101, 112)), 0}
}

func rsaKey(t testing.TB) signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, spkiOf(t, key), seq(oid(1, 2, 840, 113549, 1, 1, 11), null), crypto.SHA256}
}

func spkiOf(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sign signs with the key's own scheme, or with that of o.
func (s signer) sign(t testing.TB, tbs []byte, o crypto.SignerOpts) []byte {
	t.Helper()
	if o == nil {
		o = s.hash
	}
	digest := tbs
	if o.HashFunc() != 0 {
		h := o.HashFunc().New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	b, err := s.key.Sign(rand.Reader, digest, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// request is a request to be signed; every part can be replaced.
type request struct {
	by         signer
	version    []byte
	subject    []byte
	attributes [][]byte
	noField    bool   // leave [0] out
	extra      []byte // after the attributes

	wrap func(tag byte, parts ...[]byte) []byte // encodes CertificationRequestInfo
	opts crypto.SignerOpts
}

func (m *maker) request() *request {
	m.t.Helper()
	return &request{by: ecKey(m.t, elliptic.P256()), version: []byte{2, 1, 0}, subject: named(m.device()), wrap: der}
}

func (r *request) tbs() []byte {
	parts := [][]byte{r.version, r.subject, r.by.spki}
	if !r.noField {
		parts = append(parts, der(0xa0, r.attributes...))
	}
	return r.wrap(0x30, append(parts, r.extra)...)
}

// parts returns the three elements of the request.
func (r *request) parts(t testing.TB) (tbs, algorithm, signature []byte) {
	t.Helper()
	tbs = r.tbs()
	return tbs, r.by.algorithm, der(3, []byte{0}, r.by.sign(t, tbs, r.opts))
}

func (r *request) der(t testing.TB) []byte {
	t.Helper()
	tbs, algorithm, signature := r.parts(t)
	return seq(tbs, algorithm, signature)
}

// build makes a request that change has changed.
func (m *maker) build(change func(*request)) []byte {
	m.t.Helper()
	r := m.request()
	if change != nil {
		change(r)
	}
	return r.der(m.t)
}

// attribute is one attribute with its values.
func attribute(id []byte, values ...[]byte) []byte { return seq(id, set(values...)) }

var (
	challengePassword = oid(1, 2, 840, 113549, 1, 9, 7)
	extensionRequest  = oid(1, 2, 840, 113549, 1, 9, 14)
	unknown           = oid(1, 3, 6, 1, 4, 1, 99999, 1)
	subjectAltName    = oid(2, 5, 29, 17)
)
