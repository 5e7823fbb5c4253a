package operator_test

import (
	"crypto/rsa"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/operator/operatortest"
)

func TestOIDCTakesTheProvidersWord(t *testing.T) {
	p := operatortest.Start(t)
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
		maps.Copy(all, more)
		return all
	}
	stranger := operatortest.NewKey(t)
	for _, tt := range []struct {
		name string
		key  *rsa.PrivateKey
		say  map[string]any
		want operator.Person
		code countersign.Code
	}{
		{"group", p.Key, map[string]any{"groups": []string{"a", "ops"}}, operator.Person{Name: "alice", Subject: "u1", Role: operator.Operator, Fleets: []string{"pumps"}}, ""},
		{"flag", p.Key, map[string]any{"email_verified": true}, operator.Person{Name: "alice", Subject: "u1", Role: operator.Viewer}, ""},
		{"name that cannot stand in the log", p.Key, map[string]any{"email_verified": true, "preferred_username": "a/b #"}, operator.Person{Name: "u1", Subject: "u1", Role: operator.Viewer}, ""},
		{"no grant", p.Key, map[string]any{"groups": []string{"a"}, "email_verified": false}, operator.Person{}, countersign.NotAllowed},
		{"another audience", p.Key, map[string]any{"groups": "ops", "aud": "other"}, operator.Person{}, countersign.BadCredential},
		{"another issuer", p.Key, map[string]any{"groups": "ops", "iss": "https://elsewhere"}, operator.Person{}, countersign.BadCredential},
		{"another key", stranger, map[string]any{"groups": "ops"}, operator.Person{}, countersign.BadCredential},
		{"expired", p.Key, map[string]any{"groups": "ops", "exp": now.Add(-time.Minute).Unix()}, operator.Person{}, countersign.CredentialExpire},
	} {
		got, err := o.Verify(t.Context(), operatortest.Sign(t, tt.key, with(tt.say)))
		if err == nil && !got.Until.Equal(now.Add(time.Hour)) {
			t.Errorf("%s: good until %v, want the end of the token", tt.name, got.Until)
		}
		got.Until = time.Time{}
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
	p := operatortest.Start(t)
	p.Down.Store(true)
	now := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	o := &operator.OIDC{Issuer: p.URL, ClientID: "c", Client: p.Client(), Now: func() time.Time { return now }, Grants: []operator.Grant{{Claim: "sub", Role: operator.Viewer}}}
	token := operatortest.Sign(t, p.Key, map[string]any{"iss": p.URL, "aud": "c", "sub": "u1", "exp": now.Add(time.Hour).Unix()})
	if _, err := o.Verify(t.Context(), token); countersign.CodeOf(err) != countersign.Unavailable {
		t.Fatalf("provider away: got %v, want unavailable", err)
	}
	p.Down.Store(false)
	if _, err := o.Verify(t.Context(), token); countersign.CodeOf(err) != countersign.Unavailable {
		t.Errorf("at once again: got %v, want it not to be asked yet", err)
	}
	now = now.Add(time.Minute)
	if _, err := o.Verify(t.Context(), token); err != nil {
		t.Errorf("provider back: %v", err)
	}
	p.Down.Store(true) // and its keys are not known for another key's signature
	stranger := operatortest.Sign(t, operatortest.NewKey(t), map[string]any{"iss": p.URL, "aud": "c", "sub": "u1", "exp": now.Add(time.Hour).Unix()})
	if _, err := o.Verify(t.Context(), stranger); countersign.CodeOf(err) != countersign.Unavailable {
		t.Errorf("keys away: got %v, want unavailable: it is no guess", err)
	}
}

func TestOIDCTakesNoAddressThatIsNotVerified(t *testing.T) {
	p := operatortest.Start(t)
	now := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	o := &operator.OIDC{
		Issuer: p.URL, ClientID: "c", Client: p.Client(), Now: func() time.Time { return now },
		Grants: []operator.Grant{{Claim: "email", Value: "boss@example.net", Role: operator.Admin}, {Claim: "sub", Role: operator.Viewer}},
	}
	for _, tt := range []struct {
		verified any
		want     operator.Person
	}{
		{nil, operator.Person{Name: "u1", Subject: "u1", Role: operator.Viewer}},
		{false, operator.Person{Name: "u1", Subject: "u1", Role: operator.Viewer}},
		{true, operator.Person{Name: "boss@example.net", Subject: "u1", Role: operator.Admin}},
	} {
		say := map[string]any{"iss": p.URL, "aud": "c", "sub": "u1", "exp": now.Add(time.Hour).Unix(), "email": "boss@example.net"}
		if tt.verified != nil {
			say["email_verified"] = tt.verified
		}
		got, err := o.Verify(t.Context(), operatortest.Sign(t, p.Key, say))
		got.Until = time.Time{}
		if d := cmp.Diff(tt.want, got); err != nil || d != "" {
			t.Errorf("verified %v: %v (-want +got):\n%s", tt.verified, err, d)
		}
	}
}
