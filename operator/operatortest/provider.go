// Package operatortest is a stand-in for an OpenID provider: discovery,
// keys, and a signature on whatever a test has it say.
package operatortest

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Provider is a running provider. It ends with the test.
type Provider struct {
	*httptest.Server
	Key  *rsa.PrivateKey
	Down atomic.Bool // it answers nothing
}

// keyBits is the size of its key, the least that is accepted.
const keyBits = 2048

// NewKey makes a key as a provider has one.
func NewKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Start runs a provider over TLS on loopback.
func Start(t testing.TB) *Provider {
	t.Helper()
	p := &Provider{Key: NewKey(t)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		if p.Down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		answer(t, w, map[string]any{
			"issuer": p.URL, "jwks_uri": p.URL + "/keys", "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token",
			"id_token_signing_alg_values_supported": []string{"RS256"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		if p.Down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		answer(t, w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.Key.Public(), KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
	})
	p.Server = httptest.NewTLSServer(mux)
	t.Cleanup(p.Close)
	return p
}

func answer(t testing.TB, w http.ResponseWriter, v any) {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		t.Errorf("answer as a provider: %v", err)
	}
}

// Sign makes an ID token with the claims, by the provider's key or another.
func Sign(t testing.TB, key *rsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}
