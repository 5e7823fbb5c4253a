package weakkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"

	"github.com/countersign-iot/countersign"
)

// ErrROCA is the cause of the error about a key with the structure of CVE-2017-15361,
// for those who treat it apart.
var ErrROCA = errors.New("CVE-2017-15361")

// Check says whether a public key is known to be weak. Errors have code WeakKey.
// A type that it does not know is not for it to judge, and passes.
func Check(pub crypto.PublicKey) error {
	reason := ""
	switch k := pub.(type) {
	case *rsa.PublicKey:
		reason = checkRSA(k)
	case *ecdsa.PublicKey:
		reason = checkECDSA(k)
	case ed25519.PublicKey:
		reason = checkEd25519(k)
	}
	if reason == "" {
		return nil
	}
	return weak(reason)
}

func weak(reason string) error {
	e := countersign.Errorf(countersign.WeakKey, "the public key is weak: %s", reason).
		WithNext("make a new key with a current library, and look for others made the same way")
	if reason == roca {
		return e.WithCause(ErrROCA)
	}
	return e
}
