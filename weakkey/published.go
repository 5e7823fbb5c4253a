package weakkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"strings"
	"sync"
)

// published.txt lists keys whose private key is public.
//
//go:embed published.txt
var publishedText string

// published maps the hash of a key to where its private half is printed.
var published = sync.OnceValue(func() map[[sha256.Size]byte]string {
	keys := map[[sha256.Size]byte]string{}
	for line := range strings.Lines(publishedText) {
		digits, where, ok := strings.Cut(strings.TrimSpace(line), " ")
		var sum [sha256.Size]byte
		if n, err := hex.Decode(sum[:], []byte(digits)); ok && err == nil && n == len(sum) {
			_, source, _ := strings.Cut(where, ", ")
			keys[sum] = source
		}
	}
	return keys
})

// checkPublished finds keys of RFCs and of the tests of other projects. An RSA key is
// identified by its modulus, whatever its exponent, and a point by its abscissa, because
// -d follows from d.
func checkPublished(pub crypto.PublicKey) string {
	var what []byte
	switch k := pub.(type) {
	case *rsa.PublicKey:
		what = k.N.Bytes()
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			return ""
		}
		what = point[1 : 1+len(point)/2]
	case ed25519.PublicKey:
		what = k
	default:
		return ""
	}
	if where, known := published()[sha256.Sum256(what)]; known {
		return "its private key is published in " + where
	}
	return ""
}
