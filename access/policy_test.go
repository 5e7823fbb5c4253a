package access_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

func TestDecideAsksThePolicyOfTheFleet(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		cert := certificate(t, 1)
		good().record(t, db, cert)
		desk := desk(t, db)
		apply := func(source string) {
			t.Helper()
			if _, _, err := desk.Policies.Apply(t.Context(), policies.Draft{Fleet: "pumps", Source: source}, "operator:ann", "rest"); err != nil {
				t.Fatal(err)
			}
		}
		apply("statements:\n  - {id: in, effect: allow, actions: [connect]}\n" +
			"  - {id: own, effect: allow, actions: [publish], topics: ['cn/${cert.subject.cn}', 'c/${client.id}']}\n")
		got := desk.Decide(t.Context(), connect(cert))
		want := []string{"cn/pump-1", "c/pump-1"}
		if d := cmp.Diff(want, got.Permissions.Publish.Allow); !got.Allow || !got.Judged || d != "" {
			t.Errorf("Decide: got %+v (-want +got):\n%s", got.Verdict, d)
		}
		apply("statements:\n  - {id: none, effect: deny, actions: [connect]}\n")
		got = desk.Decide(t.Context(), connect(cert))
		if got.Allow || got.Code != countersign.NotAllowed || !strings.Contains(got.Reason, "policy (version 2) of fleet pumps") || !strings.Contains(got.Reason, "statement none (line 2)") {
			t.Errorf("Decide: got %v, %s, %q, want a refusal that names version and statement", got.Allow, got.Code, got.Reason)
		}
	})
}
