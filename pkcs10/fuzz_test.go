package pkcs10_test

import (
	"bytes"
	"crypto/x509"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/pkcs10/pkcs10test"
)

// FuzzParseCSR feeds any octets to all that a door does with a request.
func FuzzParseCSR(f *testing.F) {
	for _, c := range pkcs10test.Cases(f) {
		if len(c.Body) < 4<<10 {
			f.Add(c.Body)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		r, err := read(body)
		if !bytes.Equal(before, body) {
			t.Error("the body was changed")
		}
		if code := countersign.CodeOf(err); err != nil && (code == countersign.Internal || err.Error() == "") {
			t.Errorf("got error %v with code %s, want a reason", err, code)
		}
		if r == nil {
			return
		}
		if len(r.Attributes) > pkcs10.MaxAttributes || len(r.Extensions) > pkcs10.MaxExtensions || len(r.Raw) > pkcs10.MaxSize {
			t.Errorf("got %d attributes, %d extensions, %d octets, want them within bounds", len(r.Attributes), len(r.Extensions), len(r.Raw))
		}
		if !bytes.Contains(r.Raw, r.RawTBS) {
			t.Error("what is signed is not the octets that came")
		}
		_, _ = r.Challenge() // must not panic on any attribute
		if key, err := r.Key(); err == nil {
			der, err := x509.MarshalPKIXPublicKey(key)
			if err != nil || !bytes.Equal(der, r.RawSubjectPublicKeyInfo) {
				t.Errorf("key in DER: got %x, %v, want %x", r.RawSubjectPublicKeyInfo, err, der)
			}
		}
		checkStrict(t, r)
	})
}

// checkStrict wants what crypto/x509 can read to be read in the same way.
func checkStrict(t *testing.T, r *pkcs10.Request) {
	t.Helper()
	strict, err := x509.ParseCertificateRequest(r.Raw)
	if err != nil || strict.PublicKey == nil {
		return
	}
	// crypto/x509 skips strings of types that it does not know.
	if strict.Subject.CommonName != "" && strict.Subject.CommonName != r.Subject.CommonName {
		t.Errorf("common name: got %q, crypto/x509 reads %q", r.Subject.CommonName, strict.Subject.CommonName)
	}
	if strict.CheckSignature() == nil && strict.SignatureAlgorithm != x509.SHA1WithRSA && strict.SignatureAlgorithm != x509.ECDSAWithSHA1 {
		if err := r.CheckSignature(); err != nil && countersign.CodeOf(err) == countersign.BadSignature {
			t.Errorf("signature: got %v, crypto/x509 accepts it", err)
		}
	}
}
