package pkcs10test

import (
	"crypto"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"

	"github.com/countersign-iot/countersign"
)

// encodings tries BER where DER belongs, what follows a request, and what is
// missing of one.
func (m *maker) encodings() {
	plain := func() []byte { return m.build(nil) }
	whole := func(wrap func(byte, ...[]byte) []byte) []byte {
		tbs, algorithm, signature := m.request().parts(m.t)
		return wrap(0x30, tbs, algorithm, signature)
	}
	m.good("an outer length of four octets", whole(long))
	m.good("an outer length that is indefinite", whole(indefinite))
	m.good("a signed length of four octets", m.build(func(r *request) { r.wrap = long }))
	m.good("a signed length that is indefinite", m.build(func(r *request) { r.wrap = indefinite }))
	m.good("a subject of indefinite length", m.build(func(r *request) {
		r.subject = indefinite(0x30, indefinite(0x31, pair(commonName, utf8String, m.device())))
	}))
	m.good("a public key of indefinite length", m.build(func(r *request) {
		var info struct {
			Algorithm asn1.RawValue
			Bits      asn1.RawValue
		}
		if _, err := asn1.Unmarshal(r.by.spki, &info); err != nil {
			m.t.Fatal(err)
		}
		r.by.spki = indefinite(0x30, long(0x30, info.Algorithm.Bytes), long(3, info.Bits.Bytes))
	}))
	m.good("version 2", m.build(func(r *request) { r.version = []byte{2, 1, 1} }))
	m.good("version 0 in two octets", m.build(func(r *request) { r.version = []byte{2, 2, 0, 0} }))
	m.good("zero octets behind it", append(plain(), make([]byte, 100)...))
	m.good("0xff octets behind it", append(plain(), 0xff, 0xff, 0xff))
	m.good("a line end behind it", append(plain(), '\r', '\n'))
	m.good("a fourth element", func() []byte {
		tbs, algorithm, signature := m.request().parts(m.t)
		return seq(tbs, algorithm, signature, null)
	}())

	m.malformed("another request behind it", slices.Concat(plain(), plain()), "other data follows the certification request")
	m.malformed("the first half", plain()[:100], "truncated")
	m.malformed("all but one octet", func() []byte { b := plain(); return b[:len(b)-1] }(), "truncated: 1 octets are missing")
	m.malformed("no signature", func() []byte {
		tbs, algorithm, _ := m.request().parts(m.t)
		return seq(tbs, algorithm)
	}(), "not a certification request")
	m.malformed("no version", m.build(func(r *request) { r.version = nil }), "version of the certification request is malformed")
	deep := null
	for range 60 {
		deep = indefinite(0x30, deep)
	}
	m.malformed("60 lengths that are indefinite", m.build(func(r *request) { r.attributes = [][]byte{deep} }), "nested deeper")
}

// keys tries public keys that are written in other ways than usual, and those
// that are not accepted. What is not accepted needs no right signature.
func (m *maker) keys() {
	by := func(s signer) []byte { return m.build(func(r *request) { r.by = s }) }
	m.good("P-384", by(ecKey(m.t, elliptic.P384())))
	m.good("P-521", by(ecKey(m.t, elliptic.P521())))
	m.good("Ed25519", by(edKey(m.t)))
	m.good("RSA", by(rsaKey(m.t)))

	bits := func(b []byte) []byte { return der(3, []byte{0}, b) }
	with := func(algorithm []byte, key []byte) []byte {
		return m.build(func(r *request) { r.by.spki = seq(algorithm, bits(key)) })
	}
	ed := edKey(m.t)
	ed.spki = seq(seq(oid(1, 3, 101, 112), null), ed.spki[9:])
	m.good("Ed25519 with NULL", by(ed))
	rsaEncryption, e := oid(1, 2, 840, 113549, 1, 1, 1), der(2, []byte{1, 0, 1})
	modulus := func(s signer) []byte { return s.key.Public().(*rsa.PublicKey).N.Bytes() }
	rsaWith := func(parameters []byte, zeros int) signer {
		s := rsaKey(m.t)
		s.spki = seq(seq(rsaEncryption, parameters), bits(seq(der(2, make([]byte, zeros), modulus(s)), e)))
		return s
	}
	m.good("RSA with zeros too many", by(rsaWith(null, 3)))
	m.good("RSA with parameters of another kind", by(rsaWith(seq(null), 1)))
	refused := func(name string, body []byte, reason string) { m.bad(name, body, countersign.WeakKey, reason) }
	m.malformed("RSA without the zero before its modulus", with(seq(rsaEncryption, null), seq(der(2, modulus(m.rsa)), e)), "modulus is not a positive number")
	large := func(bits int, e int64) []byte {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return seq(der(2, []byte{0}, n.SetBit(n, 0, 1).Bytes()), der(2, big.NewInt(e).Bytes()))
	}
	m.later("RSA of 1024 bits", with(seq(rsaEncryption, null), large(1024, 65537)), countersign.WeakKey, "1024 bits")
	m.later("RSA of 8192 bits", with(seq(rsaEncryption, null), large(8192, 65537)), countersign.WeakKey, "8192 bits")
	m.later("RSA with exponent 3", with(seq(rsaEncryption, null), large(2048, 3)), countersign.WeakKey, "exponent 3")
	refused("RSASSA-PSS key", with(seq(oid(1, 2, 840, 113549, 1, 1, 10)), large(2048, 65537)), "id-RSASSA-PSS")

	ec := oid(1, 2, 840, 10045, 2, 1)
	point := append([]byte{4}, make([]byte, 64)...)
	for name, curve := range map[string][]byte{
		"secp256k1": oid(1, 3, 132, 0, 10), "brainpoolP256r1": oid(1, 3, 36, 3, 3, 2, 8, 1, 1, 7), "P-224": oid(1, 3, 132, 0, 33),
		"P-192": oid(1, 2, 840, 10045, 3, 1, 1), "SM2": oid(1, 2, 156, 10197, 1, 301), "1.3.6.1.4.1.99999.9": oid(1, 3, 6, 1, 4, 1, 99999, 9),
	} {
		refused("curve "+name, with(seq(ec, curve), point), "curve "+name)
	}
	p256 := oid(1, 2, 840, 10045, 3, 1, 7)
	refused("no curve", with(seq(ec), point), "names no curve")
	refused("an implicit curve", with(seq(ec, null), point), "names no curve")
	refused("a point off its curve", with(seq(ec, p256), point), "not a valid one")
	refused("a point of half a length", with(seq(ec, p256), point[:33]), "two coordinates of 32 octets")
	refused("a point of no octets", with(seq(ec, p256), nil), "two coordinates of 32 octets")
	refused("a hybrid point", with(seq(ec, p256), append([]byte{6}, point[1:]...)), "two coordinates of 32 octets")
	for name, id := range map[string][]byte{
		"Ed448": oid(1, 3, 101, 113), "X25519": oid(1, 3, 101, 110), "DSA": oid(1, 2, 840, 10040, 4, 1), "ML-DSA-65": oid(2, 16, 840, 1, 101, 3, 4, 3, 18),
		"1.3.6.1.4.1.99999.8": oid(1, 3, 6, 1, 4, 1, 99999, 8),
	} {
		refused("key "+name, with(seq(id), point), "algorithm "+name)
	}
	refused("Ed25519 of 31 octets", with(seq(oid(1, 3, 101, 112)), make([]byte, 31)), "31 octets")
	m.malformed("a public key of half octets", m.build(func(r *request) { r.by.spki = seq(seq(ec, p256), der(3, []byte{4}, point)) }), "public key of the certification request is malformed")
}

// signatures tries ways to sign, and what is not a signature.
func (m *maker) signatures() {
	by := func(s signer, algorithm []byte, o crypto.SignerOpts) []byte {
		return m.build(func(r *request) { r.by, r.opts = s, o; r.by.algorithm = algorithm })
	}
	p256 := func() signer { return ecKey(m.t, elliptic.P256()) }
	rsaWith := func(n int) []byte { return oid(1, 2, 840, 113549, 1, 1, n) }
	ecWith := func(n int) []byte { return oid(1, 2, 840, 10045, 4, 3, n) }
	m.good("SHA-384 by RSA", by(rsaKey(m.t), seq(rsaWith(12), null), crypto.SHA384))
	m.good("SHA-512 by RSA without NULL", by(rsaKey(m.t), seq(rsaWith(13)), crypto.SHA512))
	m.good("SHA-384 by P-256", by(p256(), seq(ecWith(3)), crypto.SHA384))
	m.good("SHA-512 by P-256 with NULL", by(p256(), seq(ecWith(4), null), crypto.SHA512))
	m.good("Ed25519 with NULL in the signature", by(edKey(m.t), seq(oid(1, 3, 101, 112), null), nil))

	hash := func(n int) []byte { return seq(oid(2, 16, 840, 1, 101, 3, 4, 2, n), null) }
	pss := func(hash, mask []byte, salt byte) []byte {
		return seq(rsaWith(10), seq(der(0xa0, hash), der(0xa1, seq(rsaWith(8), mask)), der(0xa2, der(2, []byte{salt}))))
	}
	for _, salt := range []byte{20, 32, 64} {
		o := &rsa.PSSOptions{SaltLength: int(salt), Hash: crypto.SHA256}
		m.good(fmt.Sprintf("PSS with a salt of %d", salt), by(rsaKey(m.t), pss(hash(1), hash(1), salt), o))
	}
	m.good("PSS with SHA-512", by(rsaKey(m.t), pss(hash(3), hash(3), 64), &rsa.PSSOptions{SaltLength: 64, Hash: crypto.SHA512}))

	any256 := &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}
	sha1 := seq(oid(1, 3, 14, 3, 2, 26), null)
	for name, algorithm := range map[string][]byte{
		"SHA-224": seq(rsaWith(14), null), "MD2": seq(rsaWith(2), null), "MD4": seq(rsaWith(3), null), "SHA-512/256": seq(rsaWith(16), null),
		"(SHA-1)": seq(oid(1, 3, 14, 3, 2, 29), null), "RSASSA-PSS (SHA-1)": seq(rsaWith(10), seq()), "RSASSA-PSS (SHA-224)": pss(hash(4), hash(4), 28),
		"SHA-256, with a mask of SHA-1": pss(hash(1), sha1, 32), "signed with rsaEncryption": seq(rsaWith(1), null), "SHA3-256": seq(oid(2, 16, 840, 1, 101, 3, 4, 3, 14)),
		"1.3.6.1.4.1.99999.7": seq(oid(1, 3, 6, 1, 4, 1, 99999, 7)),
	} {
		m.malformed("RSA with "+name, by(m.rsa, algorithm, any256), name)
	}
	for name, algorithm := range map[string][]byte{
		"ecdsa-with-SHA224": seq(ecWith(1)), "not signed at all": seq(oid(1, 3, 6, 1, 5, 5, 7, 6, 36)), "ecdsa-with-Specified": seq(oid(1, 2, 840, 10045, 4, 3), hash(1)),
	} {
		m.malformed("ECDSA with "+name, by(p256(), algorithm, nil), name)
	}
	m.malformed("a PSS salt that is negative", by(m.rsa, pss(hash(1), hash(1), 0xff), any256), "RSASSA-PSS parameters")
	m.bad("an RSA algorithm with an ECDSA key", by(p256(), seq(rsaWith(11), null), nil), countersign.BadSignature, "its public key is an ECDSA key")
	m.bad("another key's signature", m.build(func(r *request) { r.by.spki = p256().spki }), countersign.BadSignature, "not signed with the key")
	m.bad("another hash than it says", by(p256(), seq(ecWith(3)), crypto.SHA256), countersign.BadSignature, "not signed with the key")
	m.ecdsaValues()
}

// ecdsaValues tries forms of the two numbers of an ECDSA signature.
func (m *maker) ecdsaValues() {
	signed := func(encode func(r, s []byte) []byte) []byte {
		req := m.request()
		tbs := req.tbs()
		var v struct{ R, S *big.Int }
		for { // until both have their highest bit set
			if _, err := asn1.Unmarshal(req.by.sign(m.t, tbs, nil), &v); err != nil {
				m.t.Fatal(err)
			}
			if v.R.BitLen() == 256 && v.S.BitLen() == 256 {
				break
			}
		}
		return seq(tbs, req.by.algorithm, der(3, encode(v.R.Bytes(), v.S.Bytes())))
	}
	zeros := make([]byte, 4)
	m.good("ECDSA with zeros too many", signed(func(r, s []byte) []byte { return slices.Concat([]byte{0}, seq(der(2, zeros, r), der(2, zeros, s))) }))
	m.good("ECDSA with lengths of four octets", signed(func(r, s []byte) []byte {
		return slices.Concat([]byte{0}, long(0x30, long(2, []byte{0}, r), long(2, []byte{0}, s)))
	}))
	m.malformed("ECDSA of negative numbers", signed(func(r, s []byte) []byte { return slices.Concat([]byte{0}, seq(der(2, r), der(2, s))) }), "negative number")
	m.malformed("ECDSA side by side", signed(func(r, s []byte) []byte { return slices.Concat([]byte{0}, r, s) }), "side by side")
	m.malformed("ECDSA of one number", signed(func(r, _ []byte) []byte { return slices.Concat([]byte{0}, seq(der(2, []byte{0}, r))) }), "two INTEGERs")
	m.malformed("ECDSA of a large number", signed(func(r, s []byte) []byte {
		return slices.Concat([]byte{0}, seq(der(2, []byte{1}, r, s), der(2, []byte{1})))
	}), "too large for the key")
	m.malformed("a signature without unused bits", signed(func(r, s []byte) []byte { return seq(der(2, []byte{0}, r), der(2, []byte{0}, s)) }), "not of whole octets")
	m.malformed("a signature of nothing", signed(func(_, _ []byte) []byte { return nil }), "not of whole octets")
}
