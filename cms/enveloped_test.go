package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"testing"
	"time"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var secret = bytes.Repeat([]byte{7}, 32)

func newSigner(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "P-256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "RSA":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// holder makes a key and a certificate for it.
func holder(t testing.TB, kind string) Recipient {
	t.Helper()
	return holderOf(t, kind, newSigner(t, kind))
}

func holderOf(t testing.TB, kind string, key crypto.Signer) Recipient {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "holder of " + kind},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), SubjectKeyId: []byte{1, 2, 3, 4},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Recipient{Certificate: cert, Key: key}
}

func recipients(t testing.TB) map[string]Recipient {
	t.Helper()
	all := map[string]Recipient{"secret": {Secret: secret, SecretID: []byte{0xab, 0xcd}}}
	for _, kind := range []string{"RSA", "P-256", "P-384", "P-521"} {
		all[kind] = holder(t, kind)
	}
	return all
}

func newPKCS8(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(newSigner(t, "P-256"))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestOpenKeyGivesWhatWasSealed(t *testing.T) {
	pkcs8 := newPKCS8(t)
	for name, to := range recipients(t) {
		for _, kind := range []string{"P-256", "P-384", "P-521", "RSA", "Ed25519"} {
			signer := holder(t, kind)
			der, err := SealKey(pkcs8, to, signer.Key.(crypto.Signer), signer.Certificate)
			if err != nil {
				t.Fatalf("%s, signed by %s: %v", name, kind, err)
			}
			if bytes.Contains(der, pkcs8[len(pkcs8)/2:]) {
				t.Errorf("%s: the message shows the key", name)
			}
			got, by, err := OpenKey(der, to)
			if err != nil || !bytes.Equal(got, pkcs8) || !by.Equal(signer.Certificate) {
				t.Errorf("OpenKey for %s, signed by %s: got %x, %v", name, kind, got, err)
			}
		}
	}
}

func TestDecryptRefusesOthers(t *testing.T) {
	all, others := recipients(t), recipients(t)
	for name, to := range all {
		der, err := Encrypt(oidData, []byte("content"), to)
		if err != nil {
			t.Fatal(err)
		}
		for other, as := range others {
			if other == "secret" {
				as.SecretID = []byte{1}
			}
			if as.Certificate != nil { // the same names, another key
				cert := *as.Certificate
				cert.SubjectKeyId = nil
				cert.SerialNumber = big.NewInt(4712)
				as.Certificate = &cert
			}
			if _, got, err := Decrypt(der, as); err == nil {
				t.Errorf("Decrypt for %s by another %s: got %q, want an error", name, other, got)
			}
		}
		wrong := others[name]
		wrong.Certificate = to.Certificate
		if name == "secret" {
			wrong.Secret = bytes.Repeat([]byte{8}, 32)
		}
		if _, got, err := Decrypt(der, wrong); err == nil {
			t.Errorf("Decrypt for %s with another key: got %q, want an error", name, got)
		}
	}
}

func TestOpenKeyRefusesChangedMessages(t *testing.T) {
	to, signer := holder(t, "P-256"), holder(t, "P-256")
	key := signer.Key.(crypto.Signer)
	pkcs8 := newPKCS8(t)
	signed, err := Sign(oidKeyPackage, element(cbasn1.SEQUENCE, pkcs8), key, signer.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	for i := range signed { // the certificate is for the caller to check, its key is not
		changed := bytes.Clone(signed)
		changed[i] ^= 0x40
		if _, content, by, err := Verify(changed); err == nil && (!bytes.Equal(content, element(cbasn1.SEQUENCE, pkcs8)) || !key.Public().(*ecdsa.PublicKey).Equal(by.PublicKey)) {
			t.Errorf("Verify with octet %d changed: got another content or key, want an error", i)
		}
	}
	other, err := Sign(oidData, pkcs8, key, signer.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	two, err := Sign(oidKeyPackage, element(cbasn1.SEQUENCE, append(bytes.Clone(pkcs8), pkcs8...)), key, signer.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"truncated": signed[:len(signed)-1], "no key package": other, "two keys": two, "nothing": {}} {
		der, err := Encrypt(oidSignedData, content, to)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := OpenKey(der, to); err == nil {
			t.Errorf("OpenKey of %s: got a key, want an error", name)
		}
	}
	bare, err := Encrypt(oidKeyPackage, element(cbasn1.SEQUENCE, pkcs8), to)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenKey(bare, to); err == nil {
		t.Error("OpenKey without signature: got a key, want an error")
	}
}

func TestVerifyWantsSignersCertificate(t *testing.T) {
	signer, other := holder(t, "P-256"), holder(t, "P-384")
	// The certificate of the same names with another key.
	der, err := Sign(oidKeyPackage, []byte("x"), signer.Key.(crypto.Signer), other.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, by, err := Verify(der); err == nil {
		t.Errorf("Verify: got %v, want an error", by.Subject)
	}
}

func TestEncryptRefuses(t *testing.T) {
	good := Recipient{Secret: secret, SecretID: []byte{1}}
	for name, tt := range map[string]struct {
		content []byte
		to      Recipient
	}{
		"a key that cannot encrypt": {[]byte("x"), holder(t, "Ed25519")},
		"an odd secret":             {[]byte("x"), Recipient{Secret: []byte("short")}},
		"no recipient":              {[]byte("x"), Recipient{}},
		"too much":                  {make([]byte, MaxSize/2+1), good},
	} {
		if _, err := Encrypt(oidData, tt.content, tt.to); err == nil {
			t.Errorf("Encrypt of or for %s: got no error", name)
		}
	}
}

// TestWrapKeyKeepsToRFC3394 holds us to the vectors of RFC 3394, 4.1 and 4.6.
func TestWrapKeyKeepsToRFC3394(t *testing.T) {
	for _, v := range [][3]string{
		{"000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "1fa68b0a8112b447aef34bd8fb5a7b829d3e862371d2cfe5"},
		{
			"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
			"00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f",
			"28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21",
		},
	} {
		kek, _ := hex.DecodeString(v[0])
		key, _ := hex.DecodeString(v[1])
		got, err := wrapKey(kek, key)
		if err != nil || hex.EncodeToString(got) != v[2] {
			t.Errorf("wrapKey: got %x, %v, want %s", got, err, v[2])
		}
		back, err := unwrapKey(kek, got)
		if err != nil || !bytes.Equal(back, key) {
			t.Errorf("unwrapKey: got %x, %v, want %x", back, err, key)
		}
		got[0] ^= 1
		if back, err := unwrapKey(kek, got); err == nil {
			t.Errorf("unwrapKey of a changed key: got %x, want an error", back)
		}
	}
}

func FuzzDecrypt(f *testing.F) {
	all := recipients(f)
	for kind, curve := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		// The same key in each run, so that the corpus has messages for it.
		scalar := make([]byte, (curve.Params().BitSize+7)/8)
		scalar[len(scalar)-1] = 7
		key, err := ecdsa.ParseRawPrivateKey(curve, scalar)
		if err != nil {
			f.Fatal(err)
		}
		all[kind] = holderOf(f, kind, key)
	}
	for _, to := range all {
		der, err := Encrypt(oidData, []byte("content"), to)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		for name, as := range all {
			contentType, content, err := Decrypt(der, as)
			if err != nil {
				continue
			}
			again, err := Encrypt(contentType, content, as)
			if err != nil {
				t.Fatal(err)
			}
			if id, got, err := Decrypt(again, as); err != nil || !bytes.Equal(got, content) || !id.Equal(contentType) {
				t.Errorf("%s: decrypt, encrypt, decrypt: got %x, %v, want %x", name, got, err, content)
			}
		}
	})
}

func FuzzVerify(f *testing.F) {
	for _, kind := range []string{"P-256", "RSA", "Ed25519"} {
		signer := holder(f, kind)
		der, err := Sign(oidKeyPackage, []byte("content"), signer.Key.(crypto.Signer), signer.Certificate)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		if _, content, signer, err := Verify(der); err == nil && (signer == nil || len(content) > len(der)) {
			t.Errorf("Verify: got %x by %v without error", content, signer)
		}
	})
}
