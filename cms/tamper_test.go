package cms

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"testing"
)

// samePublic reports whether two public keys are the same.
func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// flips calls try with der once for each of its first n octets, with one bit of it
// changed: another bit from octet to octet, so that tags, lengths and values are met by
// all of them.
func flips(der []byte, n int, try func(at int, changed []byte)) {
	for i := range n {
		changed := bytes.Clone(der)
		changed[i] ^= 1 << (i % 8)
		try(i, changed)
	}
}

// TestVerifyRefusesEachChangedOctet changes one octet after another of a SignedData. The
// certificates are for the caller to check: a change there may go unnoticed while the
// key stays. All else is refused, or is read as what was signed.
func TestVerifyRefusesEachChangedOctet(t *testing.T) {
	t.Parallel()
	content := []byte("what was signed")
	for _, kind := range []string{"P-256", "P-384", "P-521", "RSA", "Ed25519"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			signer := holder(t, kind)
			der, err := Sign(oidKeyPackage, content, signer.Key.(crypto.Signer), signer.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			accepted := 0
			flips(der, len(der), func(at int, changed []byte) {
				contentType, got, by, err := Verify(changed)
				if err != nil {
					return
				}
				accepted++
				if !contentType.Equal(oidKeyPackage) || !bytes.Equal(got, content) || !samePublic(signer.Certificate.PublicKey, by.PublicKey) {
					t.Errorf("octet %d changed: got %v %q of %v, want an error or what was signed", at, contentType, got, by.Subject)
				}
			})
			if most := len(signer.Certificate.Raw); accepted > most {
				t.Errorf("got %d of %d changed messages accepted, want at most the %d octets of the certificate", accepted, len(der), most)
			}
		})
	}
}

// TestOpenKeyRefusesEachChangedOctet is the same for the whole message that a device gets.
// CBC does not protect what it hides: that a change is found is the signature's work. The
// slow curves differ from P-256 in the recipient alone, which is before the content.
func TestOpenKeyRefusesEachChangedOctet(t *testing.T) {
	t.Parallel()
	pkcs8, signer := newPKCS8(t), holder(t, "P-256")
	for name, to := range recipients(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			der, err := SealKey(pkcs8, to, signer.Key.(crypto.Signer), signer.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			n := len(der)
			if name == "P-384" || name == "P-521" {
				n -= len(signer.Certificate.Raw) + len(pkcs8)
			}
			flips(der, n, func(at int, changed []byte) {
				got, by, err := OpenKey(changed, to)
				if err == nil && (!bytes.Equal(got, pkcs8) || !samePublic(signer.Certificate.PublicKey, by.PublicKey)) {
					t.Errorf("octet %d changed: got another key, want an error or the key", at)
				}
			})
		})
	}
}

// TestCutMessagesAreRefused passes to each reader all beginnings of a message, and the message
// without one of its octets: lengths in it are right for neither.
func TestCutMessagesAreRefused(t *testing.T) {
	t.Parallel()
	signer, to := holder(t, "P-256"), holder(t, "P-384")
	certsOnly, err := EncodeCertsOnly(signer.Certificate.Raw, to.Certificate.Raw)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Sign(oidKeyPackage, []byte("content"), signer.Key.(crypto.Signer), signer.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	enveloped, err := Encrypt(oidData, []byte("content"), to)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		der  []byte
		read func([]byte) error
		want error
	}{
		"certs-only":    {certsOnly, func(der []byte) error { _, err := ParseCertsOnly(der); return err }, errMalformed},
		"SignedData":    {signed, func(der []byte) error { _, _, _, err := Verify(der); return err }, errSigned},
		"EnvelopedData": {enveloped, func(der []byte) error { _, _, err := Decrypt(der, to); return err }, errEnvelope},
	} {
		if err := tt.read(tt.der); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range tt.der {
			if err := tt.read(tt.der[:i]); !errors.Is(err, tt.want) {
				t.Errorf("%s of %d octets: got %v, want %v", name, i, err, tt.want)
			}
			if err := tt.read(append(bytes.Clone(tt.der[:i]), tt.der[i+1:]...)); !errors.Is(err, tt.want) {
				t.Errorf("%s without octet %d: got %v, want %v", name, i, err, tt.want)
			}
		}
		if err := tt.read(append(bytes.Clone(tt.der), 0)); !errors.Is(err, tt.want) {
			t.Errorf("%s and an octet: got %v, want %v", name, err, tt.want)
		}
		size := fmt.Sprintf("%d octets are over %d", MaxSize+1, MaxSize)
		if err := tt.read(make([]byte, MaxSize+1)); err == nil || !bytes.Contains([]byte(err.Error()), []byte(size)) {
			t.Errorf("%s over the limit: got %v, want %q", name, err, size)
		}
		if err := tt.read(make([]byte, MaxSize)); !errors.Is(err, tt.want) {
			t.Errorf("%s of zeros at the limit: got %v, want %v", name, err, tt.want)
		}
	}
}
