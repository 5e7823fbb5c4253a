package server_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/operator/operatortest"
)

// TestIDTokenOpensTheDoorForItsScope signs a person in with an OpenID provider, and
// lets a web application see what he may see and nothing else.
func TestIDTokenOpensTheDoorForItsScope(t *testing.T) {
	provider := operatortest.Start(t)
	roots := filepath.Join(t.TempDir(), "provider.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: provider.Certificate().Raw})
	if err := os.WriteFile(roots, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) {
		c.Listeners.WebSocket = "127.0.0.1:0"
		c.OIDC = config.OIDC{Issuer: provider.URL, ClientID: "fleet-app", Roots: roots, Grants: []config.Grant{
			{Claim: "groups", Value: "pumps-ops", Role: "operator", Fleets: []string{"default"}},
		}}
	}})
	s.Enroll(t, "pump-1")
	if _, err := s.Admin.PutFleet(t.Context(), "valves", api.PutFleet{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "valve-1", Fleet: "valves"}); err != nil {
		t.Fatal(err)
	}
	id := operatortest.Sign(t, provider.Key, map[string]any{
		"iss": provider.URL, "aud": "fleet-app", "sub": "u1", "exp": time.Now().Add(time.Hour).Unix(), "email": "alice@example.com", "email_verified": true, "groups": []string{"pumps-ops"},
	})
	if _, why := signIn(t, s, id, "device:valve-1"); !strings.Contains(why, "there is no device") {
		t.Errorf("a device of a fleet that she is not for: got %q", why)
	}
	if _, why := signIn(t, s, id+"x", "device:pump-1"); !strings.Contains(why, "not good") {
		t.Errorf("an altered ID token: got %q", why)
	}
	token, why := signIn(t, s, id, "device:pump-1")
	if why != "" {
		t.Fatal(why)
	}
	c := paho.NewClient(paho.NewClientOptions().AddBroker(s.Endpoints().WebSocket).SetClientID("page").SetUsername("page").SetPassword(token).
		SetTLSConfig(&tls.Config{RootCAs: s.Roots}).SetAutoReconnect(false).SetConnectTimeout(20 * time.Second))
	if k := c.Connect(); !k.WaitTimeout(20*time.Second) || k.Error() != nil {
		t.Fatalf("connect with the access token: %v", k.Error())
	}
	defer c.Disconnect(100)
	sessions := s.Sessions()
	if len(sessions) != 1 || sessions[0].Device != "operator/oidc:alice@example.com" || strings.Join(sessions[0].Scope, " ") != "pump-1" {
		t.Errorf("got sessions %+v", sessions)
	}
	for filter, want := range map[string]bool{"devices/pump-1/up/#": true, "devices/valve-1/up/#": false, "#": false} {
		k := c.Subscribe(filter, 1, func(paho.Client, paho.Message) {})
		k.WaitTimeout(20 * time.Second)
		if granted := k.(*paho.SubscribeToken).Result()[filter] != 0x80; granted != want {
			t.Errorf("subscribe to %s: granted %v, want %v", filter, granted, want)
		}
	}
}

// signIn exchanges an ID token for an access token, or says why not.
func signIn(t *testing.T, s *countersigntest.Server, id, scope string) (token, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	form := url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {id},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:id_token"}, "scope": {scope},
	}
	u, err := url.Parse(s.Endpoints().WebSocket)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+u.Host+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.Roots}}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var out map[string]any
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	token, _ = out["access_token"].(string)
	why, _ = out["error_description"].(string)
	return token, why
}
