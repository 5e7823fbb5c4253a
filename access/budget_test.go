package access_test

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// TestAVerdictCarriesTheBudgetOfItsFleet checks that a verdict has the budget on record for
// every kind of credential, also the first verdict of a process: neither a budget that an
// earlier decision read nor the defaults.
func TestAVerdictCarriesTheBudgetOfItsFleet(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newTokenWorld(t, db)
		cert := certificate(t, 0xa1)
		w.exec(t, fmt.Sprintf(`UPDATE certificate SET fingerprint = '%x'`, sha256.Sum256(cert.Raw)))
		rules := func(sessions string) {
			t.Helper()
			w.exec(t, `UPDATE fleet SET rules = '{"access":{"kinds":["certificate","token"],"guests":true},"budget":{"sessions":`+sessions+`}}' WHERE name = 'pumps'`)
		}
		_, operators, err := w.issue(t, alice("pump-1"), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		_, devices, err := w.issue(t, access.Token{Subject: "pump-1", Source: "certificate:issuing/a1"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			name string
			c    countersign.Connection
		}{
			{"a certificate", connect(cert)},
			{"a device's token", countersign.Connection{Username: "pump-1", Password: []byte(devices)}},
			{"an operator's token", countersign.Connection{Username: "alice", Password: []byte(operators)}},
			{"a broker's word", countersign.Connection{Gateway: "hook", Username: "pump-1", Vouched: "emqx"}},
			{"nothing", countersign.Connection{Username: "pumps"}},
		} {
			desk := decider(t, db, w.desk.Now)
			desk.Tokens = w.tokens
			for sessions, text := range map[int]string{200: "200", 201: "201"} {
				rules(text)
				got := desk.Decide(t.Context(), tt.c)
				if got.Budget.Sessions != sessions || got.Budget.Events != countersign.DefaultEvents {
					t.Errorf("%s: got %s, %+v, want %d sessions", tt.name, got.Reason, got.Budget, sessions)
				}
			}
			rules(`"many"`)
			if got := desk.Decide(t.Context(), tt.c); got.Allow || got.Code != countersign.Unavailable {
				t.Errorf("%s, rules that cannot be read: got %+v, want unavailable", tt.name, got)
			}
		}
	})
}
