package sdk

import (
	"context"
	"iter"
	"net/http"
	"strconv"

	"github.com/countersign-iot/countersign/api"
)

// LatestAudit in place of an id is the newest audit.
const LatestAudit = "latest"

// StartAudit starts an audit, of all checks where none is named. It answers at
// once; ask Audit how far it is.
func (a *Admin) StartAudit(ctx context.Context, n api.NewAudit) (*api.AuditRun, error) {
	return post[api.AuditRun](ctx, a, "/audit/runs", n)
}

// Audit gets one audit and how far it is.
func (a *Admin) Audit(ctx context.Context, id string) (*api.AuditRun, error) {
	return get[api.AuditRun](ctx, a, auditPath(id, ""))
}

// CancelAudit ends an audit early.
func (a *Admin) CancelAudit(ctx context.Context, id string) (*api.AuditRun, error) {
	return post[api.AuditRun](ctx, a, auditPath(id, "/cancel"), nil)
}

// Audits lists audits, newest first.
func (a *Admin) Audits(ctx context.Context) iter.Seq2[api.AuditRun, error] {
	return list[api.AuditRun](ctx, a, "/audit/runs", query())
}

// AuditChecks lists the checks by name.
func (a *Admin) AuditChecks(ctx context.Context) iter.Seq2[api.AuditCheck, error] {
	return list[api.AuditCheck](ctx, a, "/audit/checks", query())
}

// AuditFindings lists what an audit found, by check.
func (a *Admin) AuditFindings(ctx context.Context, id string, f api.AuditFindingFilter) iter.Seq2[api.AuditFinding, error] {
	return list[api.AuditFinding](ctx, a, auditPath(id, "/findings"), query(f))
}

// AuditTrend compares the last audits by check; runs 0 is all that are kept.
func (a *Admin) AuditTrend(ctx context.Context, runs int) (*api.Page[api.AuditTrend], error) {
	return get[api.Page[api.AuditTrend]](ctx, a, "/audit/trend?runs="+strconv.Itoa(runs))
}

// AuditSuppressions lists what is left alone on purpose.
func (a *Admin) AuditSuppressions(ctx context.Context) iter.Seq2[api.AuditSuppression, error] {
	return list[api.AuditSuppression](ctx, a, "/audit/suppressions", query())
}

// Suppress leaves findings alone for a time.
func (a *Admin) Suppress(ctx context.Context, n api.NewAuditSuppression) (*api.AuditSuppression, error) {
	return post[api.AuditSuppression](ctx, a, "/audit/suppressions", n)
}

// Unsuppress ends a suppression at once.
func (a *Admin) Unsuppress(ctx context.Context, id string) (*api.AuditSuppression, error) {
	return call[api.AuditSuppression](ctx, a, http.MethodDelete, "/audit/suppressions/"+segment(id), nil)
}

func auditPath(id, act string) string { return "/audit/runs/" + segment(id) + act }
