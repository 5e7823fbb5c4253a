package operator_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/operator"
)

// provider is somebody else's OpenID provider: discovery, keys, and a signature on
// whatever it is told to say.
type provider struct {
	*httptest.Server
	key  *rsa.PrivateKey
	down bool
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		if p.down {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": p.URL, "jwks_uri": p.URL + "/keys", "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token",
			"id_token_signing_alg_values_supported": []string{"RS256"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
	})
	p.Server = httptest.NewTLSServer(mux)
	t.Cleanup(p.Close)
	return p
}

// sign makes an ID token that says all of claims.
func (p *provider) sign(t *testing.T, key *rsa.PrivateKey, all map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(s).Claims(all).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestOIDCTakesTheProvidersWord(t *testing.T) {
	p := newProvider(t)
	now := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	o := &operator.OIDC{
		Issuer: p.URL, ClientID: "fleet-app", Client: p.Client(), Now: func() time.Time { return now },
		Grants: []operator.Grant{
			{Claim: "groups", Value: "ops", Role: operator.Operator, Fleets: []string{"pumps"}},
			{Claim: "email_verified", Role: operator.Viewer},
		},
	}
	with := func(more map[string]any) map[string]any {
		all := map[string]any{"iss": p.URL, "aud": "fleet-app", "sub": "u1", "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "preferred_username": "alice"}
		for k, v := range more {
			all[k] = v
		}
		return all
	}
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		key  *rsa.PrivateKey
		say  map[string]any
		want operator.Person
		code countersign.Code
	}{
		{"group", p.key, map[string]any{"groups": []string{"a", "ops"}}, operator.Person{Name: "alice", Subject: "u1", Role: operator.Operator, Fleets: []string{"pumps"}}, ""},
		{"flag", p.key, map[string]any{"email_verified": true}, operator.Person{Name: "alice", Subject: "u1", Role: operator.Viewer}, ""},
		{"name that cannot stand in the log", p.key, map[string]any{"email_verified": true, "preferred_username": "a/b #"}, operator.Person{Name: "u1", Subject: "u1", Role: operator.Viewer}, ""},
		{"no grant", p.key, map[string]any{"groups": []string{"a"}, "email_verified": false}, operator.Person{}, countersign.NotAllowed},
		{"another audience", p.key, map[string]any{"groups": "ops", "aud": "other"}, operator.Person{}, countersign.BadCredential},
		{"another issuer", p.key, map[string]any{"groups": "ops", "iss": "https://elsewhere"}, operator.Person{}, countersign.BadCredential},
		{"another key", stranger, map[string]any{"groups": "ops"}, operator.Person{}, countersign.BadCredential},
		{"expired", p.key, map[string]any{"groups": "ops", "exp": now.Add(-time.Minute).Unix()}, operator.Person{}, countersign.CredentialExpire},
	} {
		got, err := o.Verify(t.Context(), p.sign(t, tt.key, with(tt.say)))
		if countersign.CodeOf(err) != tt.code || cmp.Diff(tt.want, got) != "" {
			t.Errorf("%s: got %+v, %v; want %+v, code %q", tt.name, got, err, tt.want, tt.code)
		}
	}
	for _, text := range []string{"", "x", "a.b.c", string(make([]byte, 1<<20))} {
		if _, err := o.Verify(t.Context(), text); countersign.CodeOf(err) != countersign.BadCredential {
			t.Errorf("%.10q: got %v, want it refused", text, err)
		}
	}
}

func TestOIDCWaitsForAProviderThatIsAway(t *testing.T) {
	p := newProvider(t)
	p.down = true
	now := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	o := &operator.OIDC{Issuer: p.URL, ClientID: "c", Client: p.Client(), Now: func() time.Time { return now }, Grants: []operator.Grant{{Claim: "sub", Role: operator.Viewer}}}
	token := p.sign(t, p.key, map[string]any{"iss": p.URL, "aud": "c", "sub": "u1", "exp": now.Add(time.Hour).Unix()})
	if _, err := o.Verify(t.Context(), token); countersign.CodeOf(err) != countersign.Unavailable {
		t.Fatalf("provider away: got %v, want unavailable", err)
	}
	p.down = false
	if _, err := o.Verify(t.Context(), token); countersign.CodeOf(err) != countersign.Unavailable {
		t.Errorf("at once again: got %v, want it not to be asked yet", err)
	}
	now = now.Add(time.Minute)
	if _, err := o.Verify(t.Context(), token); err != nil {
		t.Errorf("provider back: %v", err)
	}
}
