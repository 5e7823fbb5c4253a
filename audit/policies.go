package audit

import (
	"context"
	"fmt"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/policy"
)

// lookAtPolicies looks at what devices may do. A fleet without a policy of its own
// has the built-in one, which a test of package policy looks at.
func lookAtPolicies(ctx context.Context, w *work) error {
	for fleet := range w.fleets {
		p, err := w.Policies.Present(ctx, fleet)
		if err != nil {
			return err
		}
		if p.Version == 0 {
			continue
		}
		w.looked(1, policy.OverlyPermissive, policy.Misconfiguration)
		for _, f := range judgePolicy(&p) {
			w.report(f.Check, f)
		}
	}
	return nil
}

func judgePolicy(p *policies.Version) (list []Finding) {
	found := func(check, reason string, severity countersign.Severity, what string, evidence map[string]string) {
		evidence["version"] = fmt.Sprint(p.Version)
		list = append(list, Finding{
			Check: check, Reason: reason, Severity: severity, Subject: "fleet:" + p.Fleet, Fleet: p.Fleet,
			Summary: fmt.Sprintf("the policy of fleet %s: %s", p.Fleet, what), Evidence: evidence,
		})
	}
	doc, err := policy.Parse([]byte(p.Source))
	if err != nil {
		found(policy.Misconfiguration, "POLICY_UNREADABLE", countersign.SeverityCritical, "it cannot be read, so that no client is admitted", map[string]string{})
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
