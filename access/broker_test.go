package access_test

import (
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// TestBrokerSessionsAreFoundByIndex checks the query plans, because there may be a million
// sessions, which are pruned each hour and looked up when a credential is stopped.
func TestBrokerSessionsAreFoundByIndex(t *testing.T) {
	db := storetest.Open(t)
	for query, want := range map[string][]string{
		`DELETE FROM broker_session WHERE not_after <> 0 AND not_after < 5 OR since < 6`:                                     {"broker_session_end", "broker_session_since"},
		`SELECT gateway FROM broker_session WHERE credential = 'secret:a' ORDER BY since DESC LIMIT 5`:                       {"broker_session_credential"},
		`DELETE FROM broker_session WHERE gateway = 'hook:b' AND client = 'c' AND ('' = '' OR username = 'u') AND since < 5`: {"INDEX"},
	} {
		rows, err := db.Query(t.Context(), `EXPLAIN QUERY PLAN `+query)
		if err != nil {
			t.Fatal(err)
		}
		var plan []string
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, detail)
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
		text := strings.Join(plan, "; ")
		for _, index := range want {
			if !strings.Contains(text, index) || strings.Contains(text, "SCAN") {
				t.Errorf("%s: got the plan %s, want it to use %s", query, text, index)
			}
		}
	}
}

// TestRecallFindsASessionWithoutClient covers RabbitMQ, which names no client when a
// certificate connects, and names one afterwards. Recall must not return a session that
// was kept under another client.
func TestRecallFindsASessionWithoutClient(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := &access.BrokerSessions{DB: db, Now: func() time.Time { return start }}
		keep := func(client, user, credential string) {
			t.Helper()
			names := []countersign.BrokerName{{User: user}}
			if client != "" {
				names = append(names, countersign.BrokerName{Client: client, User: user})
			}
			s := countersign.Session{Gateway: "hook:r", ClientID: client, Device: user, Credential: credential, Since: start}
			if err := b.Keep(t.Context(), s, names...); err != nil {
				t.Fatal(err)
			}
		}
		keep("", "pump-1", "vouched:r")
		keep("pump-2/a", "pump-2", "secret:1")
		keep("pump-3/a", "pump-3", "secret:2")
		keep("", "pump-3", "vouched:r")
		for _, tt := range []struct{ client, user, want string }{
			{"pump-1", "pump-1", "vouched:r"},
			{"", "pump-1", "vouched:r"},
			{"pump-1", "pump-9", ""},
			{"pump-2/a", "pump-2", "secret:1"},
			{"pump-2/A", "pump-2", ""},
			{"pump-2/b", "pump-2", ""},
			{"pump-3/a", "pump-3", "secret:2"},
			{"pump-3/b", "pump-3", "vouched:r"},
		} {
			got, err := b.Recall(t.Context(), "hook:r", countersign.BrokerName{Client: tt.client, User: tt.user})
			if tt.want == "" && countersign.CodeOf(err) != countersign.NotFound || tt.want != "" && (err != nil || got.Credential != tt.want) {
				t.Errorf("%s of %s: got %q, %v, want %q", tt.client, tt.user, got.Credential, err, tt.want)
			}
		}
	})
}
