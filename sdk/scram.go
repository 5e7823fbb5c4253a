package sdk

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// SCRAMMethod is the authentication method of MQTT 5 that SCRAM speaks.
	SCRAMMethod = "SCRAM-SHA-256"

	// minIterations is the least of RFC 7677, 4; maxIterations keeps a false server
	// from having a small device compute for hours.
	minIterations = 4096
	maxIterations = 1 << 20
)

// SCRAM is the device's side of SCRAM-SHA-256 (RFC 5802, 7677): it proves that it has
// the secret without sending it, and learns that the server knows it too. One value
// serves one exchange. What First returns goes into the CONNECT of MQTT 5 with method
// SCRAMMethod, what Answer returns into the AUTH packet that answers the server's, and
// what comes with CONNACK goes to Check.
type SCRAM struct {
	Device string
	Secret string // as text: csds_…

	bare  string
	nonce string
	proof []byte // that the server must give
}

// First is the client's first message.
func (s *SCRAM) First() []byte {
	s.nonce = rand.Text()
	s.bare = "n=" + strings.NewReplacer("=", "=3D", ",", "=2C").Replace(s.Device) + ",r=" + s.nonce
	return []byte("n,," + s.bare)
}

// Answer proves the secret to what the server asked.
func (s *SCRAM) Answer(asked []byte) ([]byte, error) {
	f := strings.Split(string(asked), ",")
	if s.bare == "" || len(f) < 3 || !strings.HasPrefix(f[0], "r="+s.nonce) || len(f[0]) == len("r="+s.nonce) ||
		!strings.HasPrefix(f[1], "s=") || !strings.HasPrefix(f[2], "i=") {
		return nil, errors.New("the server's SCRAM message is malformed, or answers another")
	}
	salt, err := base64.StdEncoding.DecodeString(f[1][2:])
	if err != nil || len(salt) == 0 {
		return nil, errors.New("the server's SCRAM message has a malformed salt")
	}
	n, err := strconv.Atoi(f[2][2:])
	if err != nil || n < minIterations || n > maxIterations {
		return nil, fmt.Errorf("the server asks for %.20q iterations, not %d to %d", f[2][2:], minIterations, maxIterations)
	}
	salted, err := pbkdf2.Key(sha256.New, s.Secret, salt, n, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("couldn't derive the SCRAM keys: %w", err)
	}
	key := hmacOf(salted, "Client Key")
	stored := sha256.Sum256(key)
	without := "c=biws," + f[0] // "n,,": no channel binding
	auth := s.bare + "," + string(asked) + "," + without
	proof := make([]byte, sha256.Size)
	subtle.XORBytes(proof, key, hmacOf(stored[:], auth))
	s.proof = hmacOf(hmacOf(salted, "Server Key"), auth)
	return []byte(without + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

// Check wants the server's proof that it knows the secret too: who has stolen the
// server's name and certificate, but not its records, has none.
func (s *SCRAM) Check(final []byte) error {
	text, ok := strings.CutPrefix(string(final), "v=")
	proof, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(s.proof) == 0 || !hmac.Equal(proof, s.proof) {
		return errors.New("the server did not prove that it knows the secret")
	}
	return nil
}

func hmacOf(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
