package cms

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// replaced returns der with one part, which must be in it, in place of another of the
// same length.
func replaced(t testing.TB, der, old, now []byte) []byte {
	t.Helper()
	if len(old) != len(now) || !bytes.Contains(der, old) {
		t.Fatalf("%x is not in the message, or %x has another length", old, now)
	}
	return bytes.ReplaceAll(der, old, now)
}

// oidDER is the DER of an OBJECT IDENTIFIER.
func oidDER(t testing.TB, id asn1.ObjectIdentifier) []byte {
	t.Helper()
	der, err := asn1.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// unknownOID returns id with its last octet changed to one that no table has.
func unknownOID(der []byte) []byte {
	out := bytes.Clone(der)
	out[len(out)-1] = 0x7d
	return out
}

// failing is a signer that cannot sign, or has a key of a kind that is not known.
type failing struct {
	public crypto.PublicKey
	err    error
}

func (f failing) Public() crypto.PublicKey { return f.public }

func (f failing) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, f.err }

func wantError(t *testing.T, what string, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("%s: got error %v, want %q", what, err, want)
	}
}

func TestSignRefuses(t *testing.T) {
	signer := holder(t, "P-256")
	key := signer.Key.(crypto.Signer)
	many := make([]*x509.Certificate, MaxCertificates+1)
	for i := range many {
		many[i] = signer.Certificate
	}
	for _, c := range []struct {
		name  string
		id    asn1.ObjectIdentifier
		key   crypto.Signer
		certs []*x509.Certificate
		want  string
	}{
		{"without certificate", oidData, key, nil, "couldn't sign: got 0 certificates, want 1 to 32"},
		{"with too many", oidData, key, many, "couldn't sign: got 33 certificates, want 1 to 32"},
		{"with an unknown key", oidData, failing{public: "key"}, many[:1], "couldn't sign: keys of type string cannot sign"},
		{"with a token that is away", oidData, failing{public: key.Public(), err: errors.New("the token is away")}, many[:1], "couldn't sign: the token is away"},
	} {
		_, err := Sign(c.id, []byte("x"), c.key, c.certs...)
		wantError(t, "Sign "+c.name, err, c.want)
	}
	if _, err := Sign(oidData, []byte("x"), key, many[:MaxCertificates]...); err != nil {
		t.Errorf("Sign with %d certificates: %v", MaxCertificates, err)
	}
	_, err := SealKey([]byte("no key"), holder(t, "P-256"), key, signer.Certificate)
	wantError(t, "SealKey of a text", err, "couldn't seal key: not PKCS #8 in DER")
	_, err = SealKey(newPKCS8(t), holder(t, "P-256"), key)
	wantError(t, "SealKey without certificate", err, "couldn't sign: got 0 certificates, want 1 to 32")
}

// TestVerifyRefusesWithReason changes what is named in a message, so that its form is right.
func TestVerifyRefusesWithReason(t *testing.T) {
	signer, other := holder(t, "P-256"), holder(t, "P-256")
	key := signer.Key.(crypto.Signer)
	sign := func(content string) []byte {
		t.Helper()
		der, err := Sign(oidKeyPackage, []byte(content), key, signer.Certificate, other.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	good := sign("content")
	digestOID, sigOID := oidDER(t, oidDigest[crypto.SHA256]), oidDER(t, suites[0].oid)
	typeOID, attrOID := oidDER(t, oidKeyPackage), oidDER(t, oidMessageDigest)
	serial := []byte{2, 2, 0x12, 0x67} // 4711
	lastSerial := bytes.LastIndex(good, serial)
	otherSigner := bytes.Clone(good)
	otherSigner[lastSerial+3]++
	otherType := bytes.Clone(good)
	otherType[bytes.Index(good, typeOID)+len(typeOID)-1]++
	sigAt := bytes.LastIndex(good, sigOID)
	unknownSig := append(append(bytes.Clone(good[:sigAt]), unknownOID(sigOID)...), good[sigAt+len(sigOID):]...)
	for _, c := range []struct {
		name string
		der  []byte
		want string
	}{
		{"another content", replaced(t, good, []byte("content"), []byte("CONTENT")), "couldn't verify: the signature is wrong"},
		{"another content type", otherType, "couldn't verify: the signature is wrong"},
		{"no message digest", replaced(t, good, attrOID, unknownOID(attrOID)), "couldn't verify: the signature is wrong"},
		{"an unknown digest", replaced(t, good, digestOID, unknownOID(digestOID)), "couldn't verify: the message uses an algorithm that is not known here"},
		{"an unknown signature", unknownSig, "couldn't verify: the message uses an algorithm that is not known here"},
		{"an unknown signer", otherSigner, "couldn't verify: the certificate of the signer is not in the message"},
		{"two messages", bytes.Join([][]byte{good, good}, nil), "couldn't verify: not a SignedData in DER with one signer"},
		{"nothing", nil, "couldn't verify: not a SignedData in DER with one signer"},
	} {
		_, _, _, err := Verify(c.der)
		wantError(t, "Verify of "+c.name, err, c.want)
	}
	if _, _, by, err := Verify(good); err != nil || !by.Equal(signer.Certificate) {
		t.Errorf("Verify: got %v, want the first certificate", err)
	}
	damaged := bytes.Clone(good)
	damaged[bytes.Index(good, signer.Certificate.Raw)+4] = byte(cbasn1.SET) // the TBSCertificate
	if _, _, _, err := Verify(damaged); err == nil || !strings.HasPrefix(err.Error(), "couldn't verify: x509: ") {
		t.Errorf("Verify with a damaged certificate: got %v, want the reason of crypto/x509", err)
	}
}

// TestSignedAttributesAreOnceAndAlone keeps to RFC 5652, 5.3 and 11.
func TestSignedAttributesAreOnceAndAlone(t *testing.T) {
	digest := bytes.Repeat([]byte{9}, 32)
	attr := func(id asn1.ObjectIdentifier, values ...[]byte) []byte {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(id)
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				for _, v := range values {
					b.AddBytes(v)
				}
			})
		})
		return b.BytesOrPanic()
	}
	kind, sum := oidDER(t, oidData), element(cbasn1.OCTET_STRING, digest)
	otherSum := element(cbasn1.OCTET_STRING, bytes.Repeat([]byte{8}, 32))
	time := attr(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}, element(cbasn1.UTCTime, []byte("260601120000Z")))
	good := signedAttrs(oidData, digest)
	for _, c := range []struct {
		name  string
		attrs []byte
		want  bool
	}{
		{"both", good, true},
		{"both and a time", append(bytes.Clone(good), time...), true},
		{"the other order", append(attr(oidMessageDigest, sum), attr(oidContentType, kind)...), true},
		{"nothing", nil, false},
		{"no digest", attr(oidContentType, kind), false},
		{"no type", attr(oidMessageDigest, sum), false},
		{"the digest twice", append(bytes.Clone(good), attr(oidMessageDigest, sum)...), false},
		{"the type twice", append(bytes.Clone(good), attr(oidContentType, kind)...), false},
		{"two digests in one", append(attr(oidContentType, kind), attr(oidMessageDigest, sum, sum)...), false},
		{"two types in one", append(attr(oidContentType, kind, kind), attr(oidMessageDigest, sum)...), false},
		{"an empty digest", append(attr(oidContentType, kind), attr(oidMessageDigest, []byte{4, 0})...), false},
		{"no value", append(attr(oidContentType), attr(oidMessageDigest, sum)...), false},
		{"another digest", append(attr(oidContentType, kind), attr(oidMessageDigest, otherSum)...), false},
		{"another type", append(attr(oidContentType, oidDER(t, oidSignedData)), attr(oidMessageDigest, sum)...), false},
		{"no attribute", append(bytes.Clone(good), 2, 1, 0), false},
	} {
		if got := attrsMatch(c.attrs, oidData, digest); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

// envelopeOf makes an EnvelopedData of any parts.
func envelopeOf(infos [][]byte, cipher asn1.ObjectIdentifier, iv, encrypted []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidEnvelopedData)
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(2)
				b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(bytes.Join(infos, nil)) })
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidData)
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(cipher)
						b.AddASN1OctetString(iv)
					})
					b.AddASN1(tagImplicit0, func(b *cryptobyte.Builder) { b.AddBytes(encrypted) })
				})
			})
		})
	})
	return b.BytesOrPanic()
}

// TestDecryptRefusesWithReason is for the holder of a secret, and is about what every
// message has in common.
func TestDecryptRefusesWithReason(t *testing.T) {
	me := Recipient{Secret: secret, SecretID: []byte{1}}
	other := Recipient{Secret: secret, SecretID: []byte{2}}
	key, iv := bytes.Repeat([]byte{3}, 32), make([]byte, aes.BlockSize)
	wrap := func(r Recipient, key []byte) []byte {
		t.Helper()
		_, info, err := r.wrap(key)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	mine, others := wrap(me, key), wrap(other, key)
	encrypted, err := encryptCBC(key, iv, []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := func(last ...byte) []byte { // a plain text without the padding that RFC 5652, 6.3 wants
		t.Helper()
		all, err := encryptCBC(key, iv, append(make([]byte, aes.BlockSize-len(last)), last...))
		if err != nil {
			t.Fatal(err)
		}
		return all[:aes.BlockSize]
	}
	many := func(n int) (infos [][]byte) {
		for range n {
			infos = append(infos, others)
		}
		return append(infos, mine)
	}
	const form, unwrap = "couldn't decrypt: not an EnvelopedData in DER", "couldn't decrypt: it cannot be opened with the key"
	const algorithm = "couldn't decrypt: the message uses an algorithm that is not known here"
	aes256 := oidAESCBC[32]
	for _, c := range []struct {
		name string
		der  []byte
		want string
	}{
		{"the last of as many recipients as may be", envelopeOf(many(maxRecipients-1), aes256, iv, encrypted), ""},
		{"one recipient more", envelopeOf(many(maxRecipients), aes256, iv, encrypted), form},
		{"no recipient", envelopeOf(nil, aes256, iv, encrypted), "couldn't decrypt: the message is for another recipient"},
		{"another recipient", envelopeOf([][]byte{others}, aes256, iv, encrypted), "couldn't decrypt: the message is for another recipient"},
		{"a recipient that is none", envelopeOf([][]byte{{0x30}}, aes256, iv, encrypted), form},
		{"a recipient with a wrong form", envelopeOf([][]byte{{0xa2, 3, 2, 1, 4}}, aes256, iv, encrypted), form},
		{"an unknown cipher", envelopeOf([][]byte{mine}, oidAESWrap[32], iv, encrypted), algorithm},
		{"a cipher with another length of key", envelopeOf([][]byte{mine}, oidAESCBC[16], iv, encrypted), unwrap},
		{"an unknown wrap", envelopeOf([][]byte{replaced(t, mine, oidDER(t, oidAESWrap[32]), unknownOID(oidDER(t, oidAESWrap[32])))}, aes256, iv, encrypted), algorithm},
		{"the wrap of a shorter secret", envelopeOf([][]byte{replaced(t, mine, oidDER(t, oidAESWrap[32]), oidDER(t, oidAESWrap[16]))}, aes256, iv, encrypted), algorithm},
		{"a short initial vector", envelopeOf([][]byte{mine}, aes256, iv[1:], encrypted), unwrap},
		{"no content", envelopeOf([][]byte{mine}, aes256, iv, nil), unwrap},
		{"part of a block", envelopeOf([][]byte{mine}, aes256, iv, encrypted[1:]), unwrap},
		{"padding of nothing", envelopeOf([][]byte{mine}, aes256, iv, blocks(0)), unwrap},
		{"padding of more than a block", envelopeOf([][]byte{mine}, aes256, iv, blocks(17)), unwrap},
		{"padding of two values", envelopeOf([][]byte{mine}, aes256, iv, blocks(1, 2)), unwrap},
		{"a whole block of padding", envelopeOf([][]byte{mine}, aes256, iv, blocks(bytes.Repeat([]byte{16}, 16)...)), ""},
	} {
		_, _, err := Decrypt(c.der, me)
		if c.want == "" {
			if err != nil {
				t.Errorf("Decrypt of %s: %v", c.name, err)
			}
			continue
		}
		wantError(t, "Decrypt of "+c.name, err, c.want)
	}
}

// TestUnwrapRefusesWithReason is about what each kind of recipient reads by itself.
func TestUnwrapRefusesWithReason(t *testing.T) {
	rsa, ec := holder(t, "RSA"), holder(t, "P-256")
	key := bytes.Repeat([]byte{3}, keySize)
	wrap := func(r Recipient) (tag cbasn1.Tag, info []byte) {
		t.Helper()
		_, der, err := r.wrap(key)
		if err != nil {
			t.Fatal(err)
		}
		in := cryptobyte.String(der)
		var content cryptobyte.String
		if !in.ReadAnyASN1(&content, &tag) {
			t.Fatal("no RecipientInfo")
		}
		return tag, content
	}
	rsaTag, rsaInfo := wrap(rsa)
	ecTag, ecInfo := wrap(ec)
	oaep, mgf, sha256 := oidDER(t, oidRSAOAEP), oidDER(t, oidMGF1), oidDER(t, oidDigest[crypto.SHA256])
	ecdh, public, aesWrap := oidDER(t, oidECDH[crypto.SHA256]), oidDER(t, oidECPublic), oidDER(t, oidAESWrap[32])
	badPoint := bytes.Clone(ecInfo)
	badPoint[bytes.Index(ecInfo, []byte{3, 66, 0, 4})+4] ^= 1
	serial := []byte{2, 2, 0x12, 0x67} // 4711
	shaAt := bytes.LastIndex(rsaInfo, sha256)
	twoHashes := append(append(bytes.Clone(rsaInfo[:shaAt]), oidDER(t, oidDigest[crypto.SHA384])...), rsaInfo[shaAt+len(sha256):]...)
	const algorithm, open = "the message uses an algorithm that is not known here", "it cannot be opened with the key"
	const form, others = "not an EnvelopedData in DER", "the message is for another recipient"
	for _, c := range []struct {
		name string
		as   Recipient
		tag  cbasn1.Tag
		info []byte
		want string
	}{
		{"RSA, another serial", rsa, rsaTag, replaced(t, rsaInfo, serial, []byte{2, 2, 0x12, 0x68}), others},
		{"RSA, no version", rsa, rsaTag, rsaInfo[3:], form},
		{"RSA, no name", rsa, rsaTag, []byte{2, 1, 0, 2, 1, 0}, form},
		{"RSA, nothing after the name", rsa, rsaTag, rsaInfo[:bytes.Index(rsaInfo, serial)+len(serial)], form},
		{"RSA, an unknown algorithm", rsa, rsaTag, replaced(t, rsaInfo, oaep, unknownOID(oaep)), algorithm},
		{"RSA, an unknown mask", rsa, rsaTag, replaced(t, rsaInfo, mgf, unknownOID(mgf)), algorithm},
		{"RSA, an unknown hash", rsa, rsaTag, replaced(t, rsaInfo, sha256, unknownOID(sha256)), algorithm},
		{"RSA, two hashes", rsa, rsaTag, twoHashes, algorithm},
		{"RSA, a changed key", rsa, rsaTag, append(bytes.Clone(rsaInfo[:len(rsaInfo)-1]), rsaInfo[len(rsaInfo)-1]^1), open},
		{"RSA, a key that only signs", Recipient{Certificate: rsa.Certificate, Key: ed25519.PrivateKey{}}, rsaTag, rsaInfo, "the key cannot decrypt"},
		{"RSA, a recipient for EC", rsa, ecTag, ecInfo, others},
		{"EC, a recipient for RSA", ec, rsaTag, rsaInfo, others},
		{"EC, another serial", ec, ecTag, replaced(t, ecInfo, serial, []byte{2, 2, 0x12, 0x68}), others},
		{"EC, no version", ec, ecTag, ecInfo[3:], form},
		{"EC, another kind of key", ec, ecTag, replaced(t, ecInfo, public, unknownOID(public)), form},
		{"EC, an unknown derivation", ec, ecTag, replaced(t, ecInfo, ecdh, unknownOID(ecdh)), algorithm},
		{"EC, an unknown wrap", ec, ecTag, replaced(t, ecInfo, aesWrap, unknownOID(aesWrap)), algorithm},
		{"EC, another wrap", ec, ecTag, replaced(t, ecInfo, aesWrap, oidDER(t, oidAESWrap[16])), open},
		{"EC, a point beside the curve", ec, ecTag, badPoint, open},
		{"EC, a changed key", ec, ecTag, append(bytes.Clone(ecInfo[:len(ecInfo)-1]), ecInfo[len(ecInfo)-1]^1), open},
		{"EC, a key of another curve", Recipient{Certificate: ec.Certificate, Key: newSigner(t, "P-384")}, ecTag, ecInfo, open},
		{"EC, a key that cannot agree", Recipient{Certificate: ec.Certificate, Key: rsa.Key}, ecTag, ecInfo, "the key cannot agree on another"},
		{"a secret, a recipient for RSA", Recipient{Secret: secret}, rsaTag, rsaInfo, others},
	} {
		_, err := c.as.unwrap(c.tag, c.info)
		wantError(t, c.name, err, c.want)
	}
	for name, as := range map[string]Recipient{"RSA": rsa, "EC": ec} {
		tag, info := rsaTag, rsaInfo
		if name == "EC" {
			tag, info = ecTag, ecInfo
		}
		if got, err := as.unwrap(tag, info); err != nil || !bytes.Equal(got, key) {
			t.Errorf("%s: got %x, %v, want the key", name, got, err)
		}
		for i := range info { // it ends anywhere
			if got, err := as.unwrap(tag, info[:i]); err == nil {
				t.Errorf("%s, the first %d octets: got %x, want an error", name, i, got)
			}
		}
	}
}

func TestKeyWrapRefuses(t *testing.T) {
	if _, err := wrapKey(make([]byte, 15), make([]byte, 16)); err == nil {
		t.Error("wrapKey with 15 octets: got no error")
	}
	if _, err := unwrapKey(make([]byte, 15), make([]byte, 24)); err == nil {
		t.Error("unwrapKey with 15 octets: got no error")
	}
	for _, n := range []int{0, 8, 15, 17} {
		_, err := wrapKey(secret, make([]byte, n))
		wantError(t, "wrapKey", err, "the key to wrap has an odd length")
	}
	for _, n := range []int{0, 8, 16, 23, 25} {
		if _, err := unwrapKey(secret, make([]byte, n)); !errors.Is(err, errUnwrap) {
			t.Errorf("unwrapKey of %d octets: got %v, want %v", n, err, errUnwrap)
		}
	}
	if _, err := deriveKEK(crypto.SHA256, nil, nil, nil, 33); err == nil {
		t.Error("deriveKEK of more than the hash has: got no error")
	}
}

func TestOpenKeySaysWhatIsMissing(t *testing.T) {
	to, signer := holder(t, "P-256"), holder(t, "P-256")
	pkcs8 := newPKCS8(t)
	key := signer.Key.(crypto.Signer)
	sign := func(id asn1.ObjectIdentifier, content []byte) []byte {
		t.Helper()
		der, err := Sign(id, content, key, signer.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	const one = "couldn't open key: the message has no package of one key"
	for _, c := range []struct {
		name    string
		id      asn1.ObjectIdentifier
		content []byte
		want    string
	}{
		{"without signature", oidKeyPackage, element(cbasn1.SEQUENCE, pkcs8), "couldn't open key: it is not signed"},
		{"of nothing signed", oidSignedData, nil, "couldn't verify: not a SignedData in DER with one signer"},
		{"of another type", oidSignedData, sign(oidData, element(cbasn1.SEQUENCE, pkcs8)), one},
		{"of two keys", oidSignedData, sign(oidKeyPackage, element(cbasn1.SEQUENCE, bytes.Repeat(pkcs8, 2))), one},
		{"of no key", oidSignedData, sign(oidKeyPackage, element(cbasn1.SEQUENCE, nil)), one},
		{"with something after it", oidSignedData, sign(oidKeyPackage, append(element(cbasn1.SEQUENCE, pkcs8), 5, 0)), one},
		{"of a number", oidSignedData, sign(oidKeyPackage, element(cbasn1.SEQUENCE, []byte{2, 1, 0})), one},
	} {
		der, err := Encrypt(c.id, c.content, to)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = OpenKey(der, to)
		wantError(t, "OpenKey "+c.name, err, c.want)
	}
	_, _, err := OpenKey([]byte("text"), to)
	wantError(t, "OpenKey of a text", err, "couldn't decrypt: not an EnvelopedData in DER")
	large := make([]byte, MaxSize/2)
	der, err := Encrypt(oidData, large, to)
	if err != nil {
		t.Fatal(err)
	}
	if _, got, err := Decrypt(der, to); err != nil || !bytes.Equal(got, large) {
		t.Errorf("Decrypt of the largest content: %d octets, %v", len(got), err)
	}
}
