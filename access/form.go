package access

import (
	"strings"

	"github.com/countersign-iot/countersign"
)

const (
	// SecretPrefix is the prefix of every secret that the server makes as text, so that
	// secret scanners and people recognize a leaked one.
	SecretPrefix = "csds_"
	// secretOctets is the number of random octets. It cannot be guessed, so a fast hash is
	// enough.
	secretOctets = 32
	secretText   = 43 // octets of that in base64, unpadded
	// maxTokenText bounds the tokens that are parsed; the server's are under 1 KiB.
	maxTokenText = 4 << 10
	sasScheme    = "sharedaccesssignature "
)

// Unguessable reports whether the credential of a client has a form that cannot be
// guessed: signed, proved in an exchange, or a secret of 256 random bits. A password that
// a person chose can be guessed.
func Unguessable(c countersign.Connection) bool {
	return c.Exchange != nil || looksLikeToken(c.Password) || looksLikeSAS(c.Password) || presumed(c.Password) == countersign.AccessSecret
}

// presumed returns the kind of a secret by its form.
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
