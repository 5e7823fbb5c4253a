package audit

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
)

// policyRow is the policy that is in force in a fleet.
type policyRow struct {
	fleet, source string
	version       int64
}

// lookAtPolicies looks at what devices may do. A fleet without a policy of its own
// has the built-in one, which a test of package policy looks at.
func lookAtPolicies(ctx context.Context, w *work) error {
	return table[policyRow]{
		name: "policies", fields: `p.fleet, p.version, p.source`, key: []string{"p.fleet"}, start: []any{""},
		from: `policy_version p WHERE %s AND p.version = (SELECT max(version) FROM policy_version q WHERE q.fleet = p.fleet)`,
		scan: func(rows *sql.Rows, p *policyRow) error { return rows.Scan(&p.fleet, &p.version, &p.source) },
		last: func(p *policyRow) []any { return []any{p.fleet} },
	}.walk(ctx, w.DB, func(p *policyRow) error {
		w.looked(1, policy.OverlyPermissive, policy.Misconfiguration)
		for _, f := range judgePolicy(p) {
			w.report(f.Check, f)
		}
		return nil
	})
}

func judgePolicy(p *policyRow) (list []Finding) {
	found := func(check, reason string, severity countersign.Severity, what string, evidence map[string]string) {
		evidence["version"] = fmt.Sprint(p.version)
		list = append(list, Finding{
			Check: check, Reason: reason, Severity: severity, Subject: "fleet:" + p.fleet, Fleet: p.fleet,
			Summary: fmt.Sprintf("the policy of fleet %s: %s", p.fleet, what), Evidence: evidence,
		})
	}
	doc, err := policy.Parse([]byte(p.source))
	if err != nil {
		found(policy.Misconfiguration, "POLICY_UNREADABLE", countersign.SeverityCritical, "it cannot be read, so nobody comes in", map[string]string{})
		return list
	}
	for _, warning := range doc.Lint() {
		reason := strings.ToUpper(warning.Code)
		switch warning.Check {
		case policy.OverlyPermissive:
			reason = "ALLOWS_BROAD_ACCESS_TO_IOT_DATA_PLANE_ACTIONS"
		case policy.Misconfiguration:
		default:
			continue
		}
		found(warning.Check, reason, warning.Severity, warning.Message, map[string]string{
			"warning": warning.Code, "statement": warning.Statement, "line": fmt.Sprint(warning.Line),
		})
	}
	return list
}
