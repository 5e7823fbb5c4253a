package access

import (
	"strings"

	"github.com/countersign-iot/countersign"
)

const (
	// SecretPrefix starts every secret that we make as text, so that a leaked one is
	// recognized by secret scanners and by people.
	SecretPrefix = "csds_"
	// secretOctets of randomness: none is guessed, and a fast hash is enough.
	secretOctets = 32
	secretText   = 43 // octets of that in base64, unpadded
	// maxTokenText bounds what is parsed at all; ours are under 1 KiB.
	maxTokenText = 4 << 10
	sasScheme    = "sharedaccesssignature "
)

// Unguessable reports whether what a client shows cannot be guessed: it
// is signed, proved, or a secret of 256 random bits by its form. A password that a
// person chose is not.
func Unguessable(c countersign.Connection) bool {
	return c.Exchange != nil || looksLikeToken(c.Password) || looksLikeSAS(c.Password) || presumed(c.Password) == countersign.AccessSecret
}

// presumed is the kind of a secret by its form.
func presumed(secret []byte) countersign.AccessKind {
	if len(secret) == len(SecretPrefix)+secretText && strings.HasPrefix(string(secret), SecretPrefix) {
		return countersign.AccessSecret
	}
	return countersign.AccessPassword
}

// looksLikeToken reports whether a password is meant as an access token.
func looksLikeToken(password []byte) bool {
	return len(password) > 3 && string(password[:3]) == "eyJ" && strings.Count(string(password[:min(len(password), maxTokenText)]), ".") == 2
}

// looksLikeSAS reports whether a password is meant as a SAS token.
func looksLikeSAS(password []byte) bool {
	return len(password) > len(sasScheme) && strings.EqualFold(string(password[:len(sasScheme)]), sasScheme)
}
