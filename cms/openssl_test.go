package cms

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign/test/kit"
)

// files writes the certificate and the key for openssl.
func (r Recipient) files(t *testing.T) (cert, key string) {
	t.Helper()
	dir := t.TempDir()
	der, err := x509.MarshalPKCS8PrivateKey(r.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = dir+"/cert.pem", dir+"/key.pem"
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: r.Certificate.Raw}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// as are the options of openssl to decrypt as the recipient.
func (r Recipient) as(t *testing.T) []string {
	t.Helper()
	if r.Certificate == nil {
		return []string{"-secretkey", hex.EncodeToString(r.Secret), "-secretkeyid", hex.EncodeToString(r.SecretID)}
	}
	cert, key := r.files(t)
	return []string{"-recip", cert, "-inkey", key}
}

// info wraps a SignedData in the ContentInfo that openssl wants around it.
func info(signed []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddBytes(signed) })
	})
	return b.BytesOrPanic()
}

// bare is the inverse of info.
func bare(t *testing.T, der []byte) []byte {
	t.Helper()
	in := cryptobyte.String(der)
	var content, signed cryptobyte.String
	var id asn1.ObjectIdentifier
	if !in.ReadASN1(&content, cbasn1.SEQUENCE) || !content.ReadASN1ObjectIdentifier(&id) || !id.Equal(oidSignedData) || !content.ReadASN1(&signed, tagExplicit0) {
		t.Fatalf("no SignedData: %x", der)
	}
	return signed
}

// TestOpenSSLDecryptsAndVerifies has openssl open what a server sends to a device, for each
// kind of recipient and signer. It cannot verify Ed25519.
func TestOpenSSLDecryptsAndVerifies(t *testing.T) {
	t.Parallel()
	openssl := kit.Program(t, "openssl")
	pkcs8 := newPKCS8(t)
	all := recipients(t)
	all["short secret"] = Recipient{Secret: secret[:16], SecretID: []byte{1}}
	all["secret of 24 octets"] = Recipient{Secret: secret[:24], SecretID: []byte{1}}
	signers := map[string]Recipient{}
	for _, kind := range []string{"P-256", "P-384", "P-521", "RSA"} {
		signers[kind] = holder(t, kind)
	}
	for name, to := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for kind, signer := range signers {
				der, err := SealKey(pkcs8, to, signer.Key.(crypto.Signer), signer.Certificate)
				if err != nil {
					t.Fatal(err)
				}
				signed := run(t, der, append([]string{openssl, "cms", "-decrypt", "-inform", "DER", "-binary"}, to.as(t)...)...)
				cert, _ := signer.files(t)
				out := t.TempDir() + "/package.der"
				run(t, info(signed), openssl, "cms", "-verify", "-inform", "DER", "-binary", "-CAfile", cert, "-purpose", "any", "-out", out)
				got, err := os.ReadFile(out)
				if err != nil || !bytes.Equal(got, element(cbasn1.SEQUENCE, pkcs8)) {
					t.Errorf("signed by %s: got %x, %v of openssl, want the package", kind, got, err)
				}
			}
		})
	}
}

// TestDecryptReadsOpenSSL reads each combination of algorithms that is known here.
func TestDecryptReadsOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := kit.Program(t, "openssl")
	all := recipients(t)
	type message struct {
		to      string
		options []string
	}
	var messages []message
	for i, hash := range []string{"sha256", "sha384", "sha512"} {
		for j, size := range []string{"-aes128", "-aes192", "-aes256"} {
			rsa := []string{"-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:" + hash, "-keyopt", "rsa_mgf1_md:" + hash, size}
			ec := []string{"-keyopt", "ecdh_kdf_md:" + hash, size}
			if (i+j)%2 == 1 { // the other half by issuer and serial
				rsa, ec = append(rsa, "-keyid"), append(ec, "-keyid")
			}
			messages = append(messages, message{"RSA", rsa}, message{[]string{"P-256", "P-384", "P-521"}[(i+j)%3], ec})
		}
	}
	for _, n := range []int{16, 24, 32} {
		name := fmt.Sprintf("a secret of %d octets", n)
		all[name] = Recipient{Secret: secret[:n], SecretID: []byte{0xab, 0xcd}}
		messages = append(messages, message{name, []string{"-secretkey", hex.EncodeToString(secret[:n]), "-secretkeyid", "ABCD", fmt.Sprintf("-aes%d", n*8)}})
	}
	for _, m := range messages {
		t.Run(fmt.Sprintf("%s %v", m.to, m.options), func(t *testing.T) {
			t.Parallel()
			to := all[m.to]
			argv := []string{openssl, "cms", "-encrypt", "-outform", "DER", "-binary"}
			if to.Certificate != nil {
				cert, _ := to.files(t)
				argv = append(argv, "-recip", cert)
			}
			der := run(t, []byte("content"), append(argv, m.options...)...)
			contentType, got, err := Decrypt(der, to)
			if err != nil || string(got) != "content" || !contentType.Equal(oidData) {
				t.Errorf("got %v %q, %v, want the content", contentType, got, err)
			}
		})
	}
}

// TestDecryptFindsItselfAmongOpenSSLsRecipients reads a message for several.
func TestDecryptFindsItselfAmongOpenSSLsRecipients(t *testing.T) {
	t.Parallel()
	openssl := kit.Program(t, "openssl")
	all := recipients(t)
	argv := []string{openssl, "cms", "-encrypt", "-outform", "DER", "-binary", "-aes256"}
	for _, kind := range []string{"P-256", "P-521", "RSA"} {
		cert, _ := all[kind].files(t)
		argv = append(argv, "-recip", cert)
		if kind == "RSA" {
			argv = append(argv, "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256")
		} else {
			argv = append(argv, "-keyopt", "ecdh_kdf_md:sha256")
		}
	}
	der := run(t, []byte("content"), argv...)
	for _, kind := range []string{"P-256", "P-521", "RSA"} {
		if _, got, err := Decrypt(der, all[kind]); err != nil || string(got) != "content" {
			t.Errorf("%s: got %q, %v, want the content", kind, got, err)
		}
	}
	for _, kind := range []string{"P-384", "secret"} {
		if _, got, err := Decrypt(der, all[kind]); !errors.Is(err, errNoRecipient) {
			t.Errorf("%s: got %q, %v, want %v", kind, got, err, errNoRecipient)
		}
	}
}

func TestDecryptRefusesWeakAlgorithms(t *testing.T) {
	t.Parallel()
	openssl := kit.Program(t, "openssl")
	all := recipients(t)
	for name, tt := range map[string]struct {
		to      string
		options []string
	}{
		"PKCS #1 v1.5":      {"RSA", []string{"-aes256"}},
		"OAEP with SHA-1":   {"RSA", []string{"-keyopt", "rsa_padding_mode:oaep", "-aes256"}},
		"MGF1 with SHA-1":   {"RSA", []string{"-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha1", "-aes256"}},
		"ECDH with SHA-1":   {"P-256", []string{"-aes256"}},
		"ECDH with SHA-224": {"P-256", []string{"-keyopt", "ecdh_kdf_md:sha224", "-aes256"}},
		"Triple DES":        {"RSA", []string{"-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-des3"}},
		"Camellia":          {"RSA", []string{"-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-camellia256"}},
	} {
		cert, _ := all[tt.to].files(t)
		der := run(t, []byte("content"), append([]string{openssl, "cms", "-encrypt", "-outform", "DER", "-binary", "-recip", cert}, tt.options...)...)
		if _, got, err := Decrypt(der, all[tt.to]); !errors.Is(err, errAlgorithm) {
			t.Errorf("Decrypt of %s: got %q, %v, want %v", name, got, err, errAlgorithm)
		}
	}
}

// TestVerifyReadsOpenSSL reads what openssl signs, with attributes of its own.
func TestVerifyReadsOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := kit.Program(t, "openssl")
	sign := func(t *testing.T, signer Recipient, options ...string) []byte {
		t.Helper()
		cert, key := signer.files(t)
		return bare(t, run(t, []byte("content"), append([]string{
			openssl, "cms", "-sign", "-nodetach", "-binary", "-outform", "DER", "-econtent_type", oidKeyPackage.String(), "-signer", cert, "-inkey", key,
		}, options...)...))
	}
	p256, p384, p521, rsa := holder(t, "P-256"), holder(t, "P-384"), holder(t, "P-521"), holder(t, "RSA")
	for _, c := range []struct {
		name    string
		signer  Recipient
		options []string
		want    error // nil: it is accepted
	}{
		{"P-256", p256, []string{"-md", "sha256"}, nil},
		{"P-384", p384, []string{"-md", "sha384"}, nil},
		{"P-521", p521, []string{"-md", "sha512"}, nil},
		{"P-521 with a shorter hash", p521, []string{"-md", "sha256"}, nil},
		{"RSA", rsa, []string{"-md", "sha256"}, nil},
		{"by key identifier", p256, []string{"-md", "sha256", "-keyid"}, nil},
		{"without the attribute of S/MIME", p256, []string{"-md", "sha256", "-nosmimecap"}, nil},
		{"no attributes", p256, []string{"-md", "sha256", "-noattr"}, errSigned},
		{"SHA-1", rsa, []string{"-md", "sha1"}, errAlgorithm},
		{"SHA-224", p256, []string{"-md", "sha224"}, errAlgorithm},
		{"RSA-PSS", rsa, []string{"-md", "sha256", "-keyopt", "rsa_padding_mode:pss"}, errAlgorithm},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			id, content, by, err := Verify(sign(t, c.signer, c.options...))
			if c.want != nil {
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				return
			}
			if err != nil || !id.Equal(oidKeyPackage) || string(content) != "content" || !by.Equal(c.signer.Certificate) {
				t.Errorf("got %v %q, %v, want the content", id, content, err)
			}
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		if _, _, _, err := Verify(sign(t, p256, "-nocerts")); !errors.Is(err, errSigned) {
			t.Errorf("got %v, want %v", err, errSigned)
		}
	})
	t.Run("two signers", func(t *testing.T) {
		cert, key := rsa.files(t)
		if _, _, _, err := Verify(sign(t, p256, "-signer", cert, "-inkey", key)); !errors.Is(err, errSigned) {
			t.Errorf("got %v, want %v", err, errSigned)
		}
	})
	t.Run("another's certificate", func(t *testing.T) {
		cert, _ := holder(t, "P-256").files(t) // of the same name and serial
		var der []byte
		for _, options := range [][]string{{"-nocerts", "-certfile", cert}, {"-certfile", cert}} {
			der = sign(t, p256, options...)
			if _, _, by, err := Verify(der); err == nil && !by.Equal(p256.Certificate) {
				t.Errorf("%v: got a signature of %x, want an error or the signer", options, by.Raw)
			}
		}
	})
}

// TestOpenSSLRefusesWhatVerifyRefuses changes the signed content of a message.
func TestOpenSSLRefusesWhatVerifyRefuses(t *testing.T) {
	t.Parallel()
	openssl := kit.Program(t, "openssl")
	signer := holder(t, "P-256")
	der, err := Sign(oidKeyPackage, []byte("content"), signer.Key.(crypto.Signer), signer.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(t.TempDir(), "changed.der")
	if err := os.WriteFile(changed, info(replaced(t, der, []byte("content"), []byte("CONTENT"))), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, _ := signer.files(t)
	out := run(t, nil, "/bin/sh", "-c", `"$0" cms -verify -inform DER -binary -in "$1" -CAfile "$2" -purpose any 2>&1 || true`, openssl, changed, cert)
	if !bytes.Contains(out, []byte("CMS Verification failure")) {
		t.Errorf("openssl of a changed content: got %s, want a failure", out)
	}
}
