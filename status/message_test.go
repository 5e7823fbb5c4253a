package status

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"

	"github.com/countersign-iot/countersign"
)

func TestParseReadsWhatTheLibraryWrites(t *testing.T) {
	a := newAuthority(t)
	cert := a.issue(t, 0x80ff)
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		der, err := ocsp.CreateRequest(cert, a.cert, &ocsp.RequestOptions{Hash: hash})
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := ocsp.ParseRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseOCSPRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		want := countersign.CertID{Hash: hash, NullParameters: true, IssuerNameHash: theirs.IssuerNameHash, IssuerKeyHash: theirs.IssuerKeyHash, Serial: "80ff"}
		got := q.CertIDs[0]
		if !bytes.Contains(der, got.DER) || len(got.DER) < 40 {
			t.Errorf("CertID as sent: got %x, want a part of %x", got.DER, der)
		}
		got.DER = nil
		if d := cmp.Diff(want, got); d != "" || len(q.CertIDs) != 1 || q.Nonce != nil {
			t.Errorf("ParseOCSPRequest with %v (-want +got):\n%s", hash, d)
		}
		if hash == crypto.SHA1 && !bytes.Equal(der, request(t, a, cert, nil)) {
			t.Errorf("EncodeOCSPRequest: got %x, want %x", request(t, a, cert, nil), der)
		}
	}
}

// build returns a request: tbs adds the content of TBSRequest, after adds what follows it.
func build(tbs func(*cryptobyte.Builder), after ...byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, tbs)
		b.AddBytes(after)
	})
	return b.BytesOrPanic()
}

func certID(b *cryptobyte.Builder, serial []byte, single ...byte) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addID(b, idParts{oidSHA1, nil, 20, serial})
		b.AddBytes(single)
	})
}

// idParts are the parts of a CertID; the hashes are given by their length in octets.
type idParts struct {
	oid, parameters []byte
	hash            int
	serial          []byte
}

func addID(b *cryptobyte.Builder, p idParts) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(p.oid) })
			b.AddBytes(p.parameters)
		})
		b.AddASN1OctetString(make([]byte, p.hash))
		b.AddASN1OctetString(make([]byte, p.hash))
		b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(p.serial) })
	})
}

// one returns a request for one certificate.
func one(p idParts) []byte {
	return build(func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { addID(b, p) })
		})
	})
}

// list adds the content of a TBSRequest: n certificates and rest, unchanged.
func list(n int, rest ...byte) func(*cryptobyte.Builder) {
	return func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for i := range n {
				certID(b, []byte{1, byte(i)})
			}
		})
		b.AddBytes(rest)
	}
}

// extensions adds requestExtensions with the extensions, unchanged.
func extensions(exts ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag2, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, e := range exts {
				b.AddBytes(e)
			}
		})
	})
	return b.BytesOrPanic()
}

func extension(oid []byte, critical bool, value []byte) []byte {
	var flag []byte
	if critical {
		flag = []byte{1, 1, 0xff}
	}
	return flagged(oid, flag, value)
}

// flagged returns an extension with the field critical, unchanged.
func flagged(oid, flag, value []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(oid) })
		b.AddBytes(flag)
		b.AddASN1OctetString(value)
	})
	return b.BytesOrPanic()
}

func nonceExt(n int, flag ...byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1OctetString(bytes.Repeat([]byte{7}, n))
	return flagged(oidNonce, flag, b.BytesOrPanic())
}

var otherOID = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x08} // preferred signature algorithms

func TestParseAccepts(t *testing.T) {
	version, v1 := []byte{0xa0, 3, 2, 1, 0}, list(1)
	for name, tt := range map[string]struct {
		der        []byte
		ids, nonce int
	}{
		"several certificates":      {build(list(MaxCertIDs)), MaxCertIDs, 0},
		"nonce of one":              {build(list(1, extensions(nonceExt(1))...)), 1, 1},
		"nonce of 128":              {build(list(1, extensions(nonceExt(128))...)), 1, 128},
		"unknown extension":         {build(list(1, extensions(extension(otherOID, false, nil), nonceExt(16))...)), 1, 16},
		"signature":                 {build(list(1), 0xa0, 2, 0x30, 0), 1, 0},
		"explicit version":          {build(func(b *cryptobyte.Builder) { b.AddBytes(version); v1(b) }), 1, 0},
		"name of the requestor":     {build(func(b *cryptobyte.Builder) { b.AddBytes([]byte{0xa1, 2, 0x82, 0}); v1(b) }), 1, 0},
		"single request extensions": {build(func(b *cryptobyte.Builder) { singles(b, extension(otherOID, false, nil)) }), 1, 0},
		"unknown, critical FALSE":   {build(list(1, extensions(flagged(otherOID, []byte{1, 1, 0}, nil), nonceExt(16))...)), 1, 16},
		"nonce, critical FALSE":     {build(list(1, extensions(nonceExt(16, 1, 1, 0))...)), 1, 16},
		"nonce, critical TRUE":      {build(list(1, extensions(nonceExt(16, 1, 1, 0xff))...)), 1, 16},
		"nonce, TRUE as in BER":     {build(list(1, extensions(nonceExt(16, 1, 1, 1))...)), 1, 16},
		"single, critical FALSE":    {build(func(b *cryptobyte.Builder) { singles(b, flagged(otherOID, []byte{1, 1, 0}, nil)) }), 1, 0},
		"parameters NULL":           {one(idParts{oidSHA1, []byte{5, 0}, 20, []byte{1}}), 1, 0},
		"an unknown algorithm":      {one(idParts{otherOID, nil, 28, []byte{1}}), 1, 0},
		"largest request": {build(func(b *cryptobyte.Builder) {
			b.AddASN1(tag1, func(b *cryptobyte.Builder) { b.AddBytes(make([]byte, maxRequestor)) })
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for range MaxCertIDs {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						addID(b, idParts{oidSHA512, []byte{5, 0}, 64, bytes.Repeat([]byte{1}, 20)})
					})
				}
			})
			b.AddBytes(extensions(nonceExt(128)))
		}), MaxCertIDs, 128},
	} {
		q, err := ParseOCSPRequest(tt.der)
		if err != nil || len(q.CertIDs) != tt.ids || len(q.Nonce) != tt.nonce {
			t.Errorf("%s: got %d certificates, nonce of %d, %v, want %d, %d", name, len(q.CertIDs), len(q.Nonce), err, tt.ids, tt.nonce)
		}
	}
}

func singles(b *cryptobyte.Builder, ext []byte) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		wrapped := extensions(ext)
		wrapped[0] = byte(tag0)
		certID(b, []byte{1}, wrapped...)
	})
}

func TestParseRefuses(t *testing.T) {
	good := build(list(1))
	for name, der := range map[string][]byte{
		"nothing":               nil,
		"text":                  []byte("GET / HTTP/1.1"),
		"truncated":             good[:len(good)-1],
		"trailing data":         append(bytes.Clone(good), 0),
		"too long":              make([]byte, MaxOCSPRequest+1),
		"no certificate":        build(list(0)),
		"too many certificates": build(list(MaxCertIDs + 1)),
		"version 2":             build(func(b *cryptobyte.Builder) { b.AddBytes([]byte{0xa0, 3, 2, 1, 1}); list(1)(b) }),
		"serial of no octets": build(func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { certID(b, nil) })
		}),
		"empty nonce":                  build(list(1, extensions(nonceExt(0))...)),
		"nonce of 129":                 build(list(1, extensions(nonceExt(129))...)),
		"nonce without its own string": build(list(1, extensions(extension(oidNonce, false, []byte("bare")))...)),
		"two nonces":                   build(list(1, extensions(nonceExt(16), nonceExt(16))...)),
		"unknown critical":             build(list(1, extensions(extension(otherOID, true, nil))...)),
		"unknown critical in single":   build(func(b *cryptobyte.Builder) { singles(b, extension(otherOID, true, nil)) }),
		"unknown critical as in BER":   build(list(1, extensions(flagged(otherOID, []byte{1, 1, 1}, nil))...)),
		"critical of two octets":       build(list(1, extensions(flagged(otherOID, []byte{1, 2, 0, 0}, nil))...)),
		"critical of no octets":        build(list(1, extensions(flagged(otherOID, []byte{1, 0}, nil))...)),
		"critical twice":               build(list(1, extensions(flagged(otherOID, []byte{1, 1, 0, 1, 1, 0}, nil))...)),
		"too many extensions":          build(list(1, extensions(slices.Repeat([][]byte{extension(otherOID, false, nil)}, maxExtensions+1)...)...)),
		"large parameters":             one(idParts{oidSHA1, append([]byte{4, 0x82, 0x3e, 0x80}, make([]byte, 16000)...), 20, []byte{1}}),
		"small parameters":             one(idParts{oidSHA1, []byte{4, 1, 0}, 20, []byte{1}}),
		"parameters NULL with content": one(idParts{oidSHA1, []byte{5, 1, 0}, 20, []byte{1}}),
		"parameters NULL and more":     one(idParts{oidSHA1, []byte{5, 0, 5, 0}, 20, []byte{1}}),
		"hashes of another length":     one(idParts{oidSHA1, nil, 21, []byte{1}}),
		"long hashes":                  one(idParts{otherOID, nil, 200, []byte{1}}),
		"long algorithm":               one(idParts{bytes.Repeat([]byte{1}, 220), nil, 20, []byte{1}}),
		"long serial":                  one(idParts{oidSHA1, nil, 20, bytes.Repeat([]byte{1}, 200)}),
		"serial with zeros before it":  one(idParts{oidSHA1, nil, 20, []byte{0, 1}}),
		"serial with ones before it":   one(idParts{oidSHA1, nil, 20, []byte{0xff, 0xff}}),
		"long name of the requestor": build(func(b *cryptobyte.Builder) {
			b.AddASN1(tag1, func(b *cryptobyte.Builder) { b.AddBytes(make([]byte, maxRequestor+1)) })
			list(1)(b)
		}),
	} {
		if q, err := ParseOCSPRequest(der); err == nil {
			t.Errorf("ParseOCSPRequest of %s: got %v, want an error", name, q)
		}
	}
}

func TestParseLeavesImpossibleSerialsEmpty(t *testing.T) {
	for name, tt := range map[string]struct {
		serial []byte
		want   countersign.Serial
	}{
		"negative": {[]byte{0x80}, ""}, "zero": {[]byte{0}, ""}, "positive with sign octet": {[]byte{0, 0x80}, "80"},
		"20 octets": {bytes.Repeat([]byte{1}, 20), countersign.Serial(bytes.Repeat([]byte("01"), 20))}, "21 octets": {bytes.Repeat([]byte{1}, 21), ""},
	} {
		q, err := ParseOCSPRequest(build(func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { certID(b, tt.serial) })
		}))
		if err != nil || q.CertIDs[0].Serial != tt.want {
			t.Errorf("%s: got %v, %v, want %q", name, q.CertIDs, err, tt.want)
		}
	}
}

func TestEncodeRefusesLongNonce(t *testing.T) {
	a := newAuthority(t)
	for _, n := range []int{0, MaxNonce + 1} {
		if _, err := EncodeOCSPRequest(&x509.Certificate{SerialNumber: a.cert.SerialNumber}, a.cert, make([]byte, n)); err == nil {
			t.Errorf("EncodeOCSPRequest with a nonce of %d: got no error", n)
		}
	}
}

func FuzzParseOCSPRequest(f *testing.F) {
	a := newAuthority(f)
	f.Add(request(f, a, a.cert, nil))
	f.Add(request(f, a, a.cert, make([]byte, 32)))
	f.Add(build(list(3, extensions(nonceExt(16), extension(otherOID, false, nil))...), 0xa0, 2, 0x30, 0))
	f.Fuzz(func(t *testing.T, der []byte) {
		q, err := ParseOCSPRequest(der)
		if err != nil {
			return
		}
		if n := len(q.CertIDs); n == 0 || n > MaxCertIDs {
			t.Errorf("got %d certificates, want 1 to %d", n, MaxCertIDs)
		}
		if n := len(q.Nonce); q.Nonce != nil && n == 0 || n > MaxNonce {
			t.Errorf("got a nonce of %d, want 1 to %d", n, MaxNonce)
		}
		for _, id := range q.CertIDs {
			again, err := ParseOCSPRequest(build(func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(id.DER) })
				})
			}))
			if err != nil || !cmp.Equal(again.CertIDs[0], id) {
				t.Errorf("parse of the CertID as sent: got %v, %v, want %v", again.CertIDs, err, id)
			}
		}
	})
}
