package rest

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/audit"
)

// AuditID is the path of one audit.
type AuditID struct {
	ID string `path:"id" maxLength:"64" doc:"The id of an audit, or latest."`
}

// audits serves the checks, their runs and findings, and what is left alone.
type audits struct{ auditor *audit.Auditor }

func (a *audits) checks(_ context.Context, in *api.Paging) (api.Page[api.AuditCheck], error) {
	return cutPage(each(audit.Checks(), shapeAuditCheck), *in, func(c api.AuditCheck) string { return c.Name }), nil
}

func (a *audits) list(ctx context.Context, in *api.Paging) (api.Page[api.AuditRun], error) {
	return asPage(shapeAudit)(a.auditor.Runs(ctx, in.After, limitOf(*in)))
}

func (a *audits) start(ctx context.Context, in *body[api.NewAudit]) (api.AuditRun, error) {
	by := byOf(ctx)
	return as(shapeAudit)(a.auditor.Start(ctx, audit.Request{By: by.Actor, Via: by.Via, Checks: in.Body.Checks}))
}

func (a *audits) get(ctx context.Context, in *AuditID) (api.AuditRun, error) {
	return as(shapeAudit)(a.auditor.Get(ctx, in.ID))
}

func (a *audits) cancel(ctx context.Context, in *AuditID) (api.AuditRun, error) {
	return as(shapeAudit)(a.auditor.Cancel(ctx, in.ID))
}

func (a *audits) findings(ctx context.Context, in *struct {
	AuditID
	api.AuditFindingFilter
	api.Paging
},
) (api.Page[api.AuditFinding], error) {
	f := audit.Filter{
		Run: in.ID, Check: in.Check, Fleet: in.Fleet, Device: in.Device, Suppressed: in.Suppressed == "yes", After: in.After, Limit: limitOf(in.Paging),
	}
	if in.MinSeverity != "" {
		f.Severities = countersign.Severities()[countersign.Severity(in.MinSeverity).Rank():]
	}
	return asPage(shapeAuditFinding)(a.auditor.Findings(ctx, f))
}

func (a *audits) trend(ctx context.Context, in *struct {
	Runs int `query:"runs" minimum:"0" maximum:"90" doc:"How many audits; 0 or absent means all that are kept."`
},
) (api.Page[api.AuditTrend], error) {
	list, err := a.auditor.Trend(ctx, in.Runs)
	return api.Page[api.AuditTrend]{Items: each(list, shapeAuditTrend)}, err
}

func (a *audits) suppressions(ctx context.Context, in *api.Paging) (api.Page[api.AuditSuppression], error) {
	return asPage(shapeSuppression)(a.auditor.Suppressions(ctx, in.After, limitOf(*in)))
}

func (a *audits) suppress(ctx context.Context, in *body[api.NewAuditSuppression]) (api.AuditSuppression, error) {
	by := byOf(ctx)
	return as(shapeSuppression)(a.auditor.Suppress(ctx, audit.Suppression{
		Check: in.Body.Check, Subject: in.Body.Subject, Reason: in.Body.Reason, EndsAt: in.Body.EndsAt, CreatedBy: by.Actor,
	}, by.Via))
}

func (a *audits) unsuppress(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"64"`
},
) (api.AuditSuppression, error) {
	by := byOf(ctx)
	return as(shapeSuppression)(a.auditor.Unsuppress(ctx, in.ID, by.Actor, by.Via))
}

func shapeAuditCheck(c audit.Check) api.AuditCheck {
	return api.AuditCheck{
		Name: c.Name, Severity: string(c.Severity), Title: c.Title, Why: c.Why, Fix: c.Do, Setting: c.Setting, Default: c.Threshold,
		Reasons: c.Reasons, Defender: c.Defender, Risks: c.Risks,
	}
}

func shapeAudit(r audit.Run) api.AuditRun {
	out := api.AuditRun{
		ID: r.ID, State: string(r.State), Reason: r.Reason, Scheduled: r.Scheduled, StartedBy: string(r.StartedBy), Node: r.Node,
		StartedAt: r.StartedAt.UTC(), EndedAt: r.EndedAt.UTC(), Severity: string(r.Severity()), Checks: []api.AuditResult{},
	}
	for _, c := range r.Checks {
		if c.Status != audit.Waiting && c.Status != audit.CheckRunning {
			out.Done++
		}
		out.Looked += c.Looked
		out.Findings += c.NonCompliant
		out.Checks = append(out.Checks, api.AuditResult{
			Name: c.Name, Status: string(c.Status), Severity: string(c.Severity), Looked: c.Looked, NonCompliant: c.NonCompliant,
			Suppressed: c.Suppressed, Kept: c.Kept, Error: c.Error,
		})
	}
	return out
}

func shapeAuditFinding(f audit.Finding) api.AuditFinding {
	return api.AuditFinding{
		ID: f.ID, Run: f.Run, Check: f.Check, Reason: f.Reason, Severity: string(f.Severity), Subject: f.Subject, Device: f.Device, Fleet: f.Fleet,
		Issuer: f.Cert.Issuer, Serial: string(f.Cert.Serial), Summary: f.Summary, Evidence: f.Evidence, Suppressed: f.Suppressed, At: f.At.UTC(),
	}
}

func shapeSuppression(s audit.Suppression) api.AuditSuppression {
	return api.AuditSuppression{
		ID: s.ID, Check: s.Check, Subject: s.Subject, Reason: s.Reason, CreatedBy: string(s.CreatedBy), CreatedAt: s.CreatedAt.UTC(), EndsAt: s.EndsAt.UTC(),
	}
}

func shapeAuditTrend(t audit.Trend) api.AuditTrend {
	out := api.AuditTrend{Check: t.Check, Points: []api.AuditTrendPoint{}}
	for _, p := range t.Points {
		out.Points = append(out.Points, api.AuditTrendPoint{
			Run: p.Run, At: p.At.UTC(), Status: string(p.Status), NonCompliant: p.NonCompliant, Suppressed: p.Suppressed,
		})
	}
	return out
}
