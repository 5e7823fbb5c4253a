package ca_test

import (
	"crypto"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"testing"

	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/test/kit"
)

// remoteKey is a key that something outside of the process keeps, which signs something
// else from a call on.
type remoteKey struct {
	crypto.Signer
	wrongFrom, calls int
}

func (k *remoteKey) Sign(rand io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.calls++; k.calls >= k.wrongFrom {
		message = append([]byte{message[0] ^ 1}, message[1:]...)
	}
	return k.Signer.Sign(rand, message, opts)
}

// TestNoWrongSignatureIsHandedOut holds that a key is verified when it is opened, and one
// outside of the process with each certificate and list.
func TestNoWrongSignatureIsHandedOut(t *testing.T) {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: start, NotAfter: start, DNSNames: []string{"example.net"}}
	for kind, key := range signers() {
		issuer := issuerFor(t, key)
		if _, err := ca.Certifier(&remoteKey{Signer: key, wrongFrom: 1}); !errors.Is(err, ca.ErrBadSignature) {
			t.Errorf("%s: opened a key that signs wrong: %v", kind, err)
		}
		certify := kit.Must(ca.Certifier(&remoteKey{Signer: key, wrongFrom: 3}))
		if der, err := certify(tmpl, issuer, &kit.Key(t).PublicKey); err != nil || parse(t, der).CheckSignatureFrom(issuer) != nil {
			t.Errorf("%s: a good signature: got %x, %v", kind, der, err)
		}
		if der, err := certify(tmpl, issuer, &kit.Key(t).PublicKey); !errors.Is(err, ca.ErrBadSignature) {
			t.Errorf("%s: a wrong signature: got %x, %v", kind, der, err)
		}
		list := kit.Must(ca.ListSigner(&remoteKey{Signer: key, wrongFrom: 3}, issuer))
		if der, err := list(); err != nil || kit.Must(x509.ParseRevocationList(der)).CheckSignatureFrom(issuer) != nil {
			t.Errorf("%s: a list with a good signature: got %x, %v", kind, der, err)
		}
		if der, err := list(); !errors.Is(err, ca.ErrBadSignature) {
			t.Errorf("%s: a list with a wrong signature: got %x, %v", kind, der, err)
		}
	}
}
