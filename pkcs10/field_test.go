package pkcs10_test

import (
	"crypto/x509"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/pkcs10/pkcs10test"
)

// read processes a request as every door and package ra do.
func read(body []byte) (*pkcs10.Request, error) {
	der, err := pkcs10.Decode(body)
	if err != nil {
		return nil, err
	}
	r, err := pkcs10.Parse(der)
	if err != nil {
		return nil, err
	}
	return r, r.CheckSignature()
}

func TestRequestsOfTheFieldAreReadOrRefusedForTheTrueReason(t *testing.T) {
	for _, c := range pkcs10test.Cases(t) {
		r, err := read(c.Body)
		switch {
		case c.Later:
		case c.Granted() && err != nil:
			t.Errorf("%s: got %v, want it read", c.Name, err)
		case c.Granted():
			if r.Subject.CommonName != c.Device {
				t.Errorf("%s: got device %q, want %q", c.Name, r.Subject.CommonName, c.Device)
			}
			if _, err := x509.ParsePKIXPublicKey(r.RawSubjectPublicKeyInfo); err != nil {
				t.Errorf("%s: the key is not in DER: %v", c.Name, err)
			}
		case countersign.CodeOf(err) != c.Code || !strings.Contains(err.Error(), c.Reason):
			t.Errorf("%s: got %s %v, want %s with %q", c.Name, countersign.CodeOf(err), err, c.Code, c.Reason)
		}
	}
}
