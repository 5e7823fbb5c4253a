package rest_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/test/kit"
)

func TestBulkTokensAreAllOrNone(t *testing.T) {
	h := newHouse(t)
	op := h.local(t)
	ids := make([]string, api.MaxBulk)
	for i := range ids {
		ids[i] = fmt.Sprint("pump-", i)
	}
	var made api.IssuedTokens
	op.must("POST", "/tokens/bulk", mustJSON(api.NewTokens{IDs: ids}), &made)
	if len(made.Tokens) != len(ids) || made.Tokens[7].ID != "pump-7" || !strings.HasPrefix(made.Tokens[7].Token, countersign.TokenPrefix) {
		t.Fatalf("got %d tokens, the eighth %+v", len(made.Tokens), made.Tokens[7])
	}
	for name, bad := range map[string][]string{"an odd id": {"pump-1", "a b"}, "no id": {"pump-1", ""}, "too many": append(ids, "x"), "none": {}} {
		if res := op.do("POST", "/tokens/bulk", mustJSON(api.NewTokens{IDs: bad}), nil); res.StatusCode/100 != 4 {
			t.Errorf("%s: got %s, want a refusal", name, res.Status)
		}
	}
	var page api.Page[api.Credential]
	op.must("GET", "/credentials?kind=token&device=pump-1&limit=10", "", &page)
	if len(page.Items) != 1 || page.Items[0].Device != "pump-1" {
		t.Errorf("tokens of pump-1: got %+v, want the first one alone", page.Items)
	}
}

func TestSharedTokenKeepsItsBounds(t *testing.T) {
	h := newHouse(t)
	op := h.local(t)
	var token api.IssuedToken
	op.must("POST", "/tokens", `{"uses":5,"devices":["pump-01..pump-20"],"networks":["127.0.0.1/32"],"per_minute":60,"label":"line"}`, &token)
	enroll := func(id string) countersign.Code {
		_, err := h.RA.Enroll(t.Context(), countersign.EnrollRequest{
			CSR: newCSR(t, id), Evidence: countersign.Evidence{Token: token.Secret}, Door: "test", Remote: netip.MustParseAddrPort("127.0.0.1:1"),
		})
		return countersign.CodeOf(err)
	}
	for id, want := range map[string]countersign.Code{"pump-07": "", "pump-21": countersign.NotAllowed} {
		if got := enroll(id); got != want {
			t.Errorf("%s: got %q, want %q", id, got, want)
		}
	}
	var x api.Explanation
	op.must("POST", "/enrollments/explain", mustJSON(api.Explain{CSR: pemRequest(t, "pump-08"), Token: token.Secret, Remote: "10.0.0.1"}), &x)
	if x.Decision != "refuse" || x.Code != string(countersign.NotAllowed) {
		t.Errorf("explain from another network: got %+v, want refuse", x)
	}
	op.must("POST", "/credentials/"+token.ID+"/stop", `{"note":"leaked"}`, nil)
	if got := enroll("pump-09"); got != countersign.CredentialExpire {
		t.Errorf("a stopped token: got %q, want credential_expired: it was good once", got)
	}
	var c api.Credential
	op.must("GET", "/credentials/"+token.ID, "", &c)
	if c.State != "stopped" || c.Reason != "leaked" || c.Used != 1 {
		t.Errorf("the stopped token: got %+v, want its reason and one use", c)
	}
}

func pemRequest(t *testing.T, id string) string {
	t.Helper()
	return pemBlock("CERTIFICATE REQUEST", newCSR(t, id))
}

func pemBlock(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func mustJSON(v any) string { return string(kit.Must(json.Marshal(v))) }

func TestClaimIsShownOnce(t *testing.T) {
	h := newHouse(t)
	op := h.local(t)
	var claim api.IssuedClaim
	op.must("POST", "/claims", `{"uses":3,"devices":["pump-*"],"label":"batch"}`, &claim)
	if !strings.Contains(claim.Key, "PRIVATE KEY") || strings.Count(claim.Chain, "BEGIN CERTIFICATE") != 2 || claim.Uses != 3 {
		t.Errorf("claim: got %+v, want a key, a chain and three uses", claim)
	}
	var own api.IssuedClaim
	op.must("POST", "/claims", mustJSON(api.NewClaim{CSR: pemRequest(t, "any"), Temporary: true}), &own)
	if own.Key != "" || own.Uses != 1 || own.ExpiresAt.Sub(own.CreatedAt).Minutes() > 5.1 {
		t.Errorf("temporary claim with a key of its own: got %+v", own.Credential)
	}
	if res := op.do("POST", "/claims", `{"ttl_seconds":31622401}`, nil); res.StatusCode/100 != 4 {
		t.Errorf("a claim for more than a year: got %s, want a refusal", res.Status)
	}
}

func TestRulesAreStrictAndComeBack(t *testing.T) {
	h := newHouse(t)
	op := h.local(t)
	in := `{"networks":["10.0.0.0/8"],"approval":["claim"],"approval_ttl":"48h","id":{"field":"serial_number","prefix":"sn-"},"pcrs":{"7":"` +
		strings.Repeat("ab", 32) + `"},"recovery":{"max_age":"720h","max_times":2}}`
	var f api.Fleet
	op.must("PUT", "/fleets/pumps", `{"methods":["token","claim"],"rules":`+in+`}`, nil)
	op.must("PUT", "/fleets/pumps", `{"overlap_seconds":60}`, &f) // leaves the rules
	if f.Rules == nil || f.Rules.Recovery == nil || f.Rules.Recovery.MaxAge != "720h0m0s" || f.Rules.ID.Prefix != "sn-" || f.Rules.PCRs["7"] == "" {
		t.Errorf("rules: got %+v", f.Rules)
	}
	var again api.Fleet
	op.must("PUT", "/fleets/pumps", `{"rules":{}}`, &again)
	if again.Rules != nil {
		t.Errorf("rules after none: got %+v", again.Rules)
	}
	for _, bad := range []string{`{"approvals":[]}`, `{"networks":["x"]}`, `{"approval_ttl":"soon"}`, `{"pcrs":{"x":""}}`, `{"recovery":{"max_times":1}}`} {
		if res := op.do("PUT", "/fleets/pumps", `{"rules":`+bad+`}`, nil); res.StatusCode/100 != 4 {
			t.Errorf("%s: got %s, want a refusal", bad, res.Status)
		}
	}
}

// TestRulesShapeIsThatOfTheRules keeps the description from falling behind.
func TestRulesShapeIsThatOfTheRules(t *testing.T) {
	for _, pair := range [][2]reflect.Type{
		{reflect.TypeFor[countersign.Rules](), reflect.TypeFor[api.Rules]()},
		{reflect.TypeFor[countersign.Access](), reflect.TypeFor[api.Access]()},
		{reflect.TypeFor[countersign.Budget](), reflect.TypeFor[api.Budget]()},
		{reflect.TypeFor[countersign.IDRule](), reflect.TypeFor[api.IDRule]()},
		{reflect.TypeFor[countersign.Recovery](), reflect.TypeFor[api.Recovery]()},
		{reflect.TypeFor[countersign.Webhook](), reflect.TypeFor[api.Webhook]()},
	} {
		if got, want := jsonNames(pair[1]), jsonNames(pair[0]); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got fields %v, want %v", pair[1], got, want)
		}
	}
}

func jsonNames(t reflect.Type) (names []string) {
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}
