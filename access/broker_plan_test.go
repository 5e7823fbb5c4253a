package access_test

import (
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/store/storetest"
)

// TestBrokerSessionsAreFoundByIndex: a million sessions are pruned each hour, and looked up
// when a credential is stopped.
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
