package rest

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/audit"
	"github.com/danielgtaylor/huma/v2"
)

func (s *Server) routeAudits(a huma.API) {
	const tag = "Audit"
	route(s, a, get("/audit/checks", tag, "List the audit checks"), s.listAuditChecks)
	route(s, a, get("/audit/runs", tag, "List audits, newest first"), s.listAudits)
	route(s, a, add("/audit/runs", tag, "Start an audit"), s.startAudit)
	route(s, a, get("/audit/runs/{id}", tag, "Get an audit and how far it is"), s.getAudit)
	route(s, a, act("/audit/runs/{id}/cancel", tag, "End an audit early"), s.cancelAudit)
	route(s, a, get("/audit/runs/{id}/findings", tag, "List what an audit found"), s.listAuditFindings)
	route(s, a, get("/audit/trend", tag, "Compare the last audits, by check"), s.auditTrend)
	route(s, a, get("/audit/suppressions", tag, "List what is left alone on purpose"), s.listSuppressions)
	route(s, a, add("/audit/suppressions", tag, "Leave findings alone for a time"), s.createSuppression)
	route(s, a, remove("/audit/suppressions/{id}", tag, "End a suppression at once"), s.removeSuppression)
}

// AuditID is the path of one audit.
type AuditID struct {
	ID string `path:"id" maxLength:"64" doc:"The id of an audit, or latest."`
}

func (s *Server) listAuditChecks(_ context.Context, in *api.Paging) (api.Page[api.AuditCheck], error) {
	return pageOf(page(audit.Checks(), "", shapeAuditCheck).Items, *in, func(c api.AuditCheck) string { return c.Name }), nil
}

func (s *Server) listAudits(ctx context.Context, in *api.Paging) (api.Page[api.AuditRun], error) {
	list, next, err := s.Auditor.Runs(ctx, in.After, limitOf(*in))
	return page(list, next, shapeAudit), err
}

func (s *Server) startAudit(ctx context.Context, in *struct{ Body api.NewAudit }) (api.AuditRun, error) {
	by := s.by(ctx)
	run, err := s.Auditor.Start(ctx, audit.Request{By: by.Actor, Via: by.Via, Checks: in.Body.Checks})
	return shapeAudit(run), err
}

func (s *Server) getAudit(ctx context.Context, in *AuditID) (api.AuditRun, error) {
	run, err := s.Auditor.Get(ctx, in.ID)
	return shapeAudit(run), err
}

func (s *Server) cancelAudit(ctx context.Context, in *AuditID) (api.AuditRun, error) {
	run, err := s.Auditor.Cancel(ctx, in.ID)
	return shapeAudit(run), err
}

func (s *Server) listAuditFindings(ctx context.Context, in *struct {
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
	list, next, err := s.Auditor.Findings(ctx, f)
	return page(list, next, shapeAuditFinding), err
}

func (s *Server) auditTrend(ctx context.Context, in *struct {
	Runs int `query:"runs" minimum:"0" maximum:"90" doc:"How many audits; 0 or absent means all that are kept."`
},
) (api.Page[api.AuditTrend], error) {
	list, err := s.Auditor.Trend(ctx, in.Runs)
	return page(list, "", shapeAuditTrend), err
}

func (s *Server) listSuppressions(ctx context.Context, in *api.Paging) (api.Page[api.AuditSuppression], error) {
	list, next, err := s.Auditor.Suppressions(ctx, in.After, limitOf(*in))
	return page(list, next, shapeSuppression), err
}

func (s *Server) createSuppression(ctx context.Context, in *struct{ Body api.NewAuditSuppression }) (api.AuditSuppression, error) {
	by := s.by(ctx)
	made, err := s.Auditor.Suppress(ctx, audit.Suppression{
		Check: in.Body.Check, Subject: in.Body.Subject, Reason: in.Body.Reason, EndsAt: in.Body.EndsAt, CreatedBy: by.Actor,
	}, by.Via)
	return shapeSuppression(made), err
}

func (s *Server) removeSuppression(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"64"`
},
) (api.AuditSuppression, error) {
	by := s.by(ctx)
	gone, err := s.Auditor.Unsuppress(ctx, in.ID, by.Actor, by.Via)
	return shapeSuppression(gone), err
}

func shapeAuditCheck(c audit.Check) api.AuditCheck {
	return api.AuditCheck{
		Name: c.Name, Severity: string(c.Severity), Title: c.Title, Why: c.Why, Fix: c.Fix, Setting: c.Setting, Default: c.Default,
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
