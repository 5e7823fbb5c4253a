package weakkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"

	"github.com/countersign-iot/countersign"
)

// The causes of errors about keys that some callers distinguish.
var (
	ErrROCA   = errors.New("CVE-2017-15361") // the structure of that fault
	ErrListed = errors.New("on a list of weak keys")
)

// Check returns an error if a public key is known to be weak, by the built-in checks;
// see [Blocklist.Check] for the lists of an installation too. Errors have code WeakKey.
// A key of an unknown type passes: whether the type is accepted is decided elsewhere.
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
		reason = checkPublished(pub)
	}
	switch reason {
	case "":
		return nil
	case roca:
		return weak(reason).WithCause(ErrROCA)
	}
	return weak(reason)
}

func weak(reason string) *countersign.Error {
	return countersign.Errorf(countersign.WeakKey, "the public key is weak: %s", reason).
		WithNext("make a new key with a current library, and look for others made the same way")
}
