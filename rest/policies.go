package rest

import (
	"context"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/policies"
	"github.com/danielgtaylor/huma/v2"
)

// maxPolicyBody is room for the largest document as a JSON string, where a line
// feed takes two octets and a control character six.
const maxPolicyBody = 256 << 10

func (s *Server) routePolicies(a huma.API) {
	const tag = "Policies"
	route(s, a, get("/policies/{fleet}", tag, "Get the policy in force"), s.getPolicy)
	route(s, a, get("/policies/{fleet}/versions", tag, "List the versions, newest first"), s.listPolicies)
	route(s, a, get("/policies/{fleet}/versions/{version}", tag, "Get a version; 0 is the built-in policy"), s.getPolicyVersion)
	route(s, a, act("/policies/check", tag, "Check a draft and run its tests").upTo(maxPolicyBody), s.checkPolicy)
	route(s, a, act("/policies/explain", tag, "Say what a client may do, and what decides").upTo(maxPolicyBody), s.explainPolicy)
	route(s, a, act("/policies/{fleet}/replay", tag, "Try a draft on what was decided of late").upTo(maxPolicyBody), s.replayPolicy)
	route(s, a, act("/policies/{fleet}/apply", tag, "Put a draft in force and cut the sessions that lose by it").upTo(maxPolicyBody), s.applyPolicy)
	route(s, a, act("/policies/{fleet}/rollback", tag, "Put an older version in force"), s.rollbackPolicy)
}

// OfFleet is a path parameter.
type OfFleet struct {
	Fleet string `path:"fleet" maxLength:"63"`
}

func (s *Server) policies() *policies.Store { return s.RA.Access.Policies }

func (s *Server) getPolicy(ctx context.Context, in *OfFleet) (api.Policy, error) {
	v, err := s.policies().Present(ctx, in.Fleet)
	return readablePolicy(v), err
}

func (s *Server) getPolicyVersion(ctx context.Context, in *struct {
	OfFleet
	Version int64 `path:"version" minimum:"0"`
},
) (api.Policy, error) {
	if _, err := s.policies().Present(ctx, in.Fleet); err != nil { // there is such a fleet
		return api.Policy{}, err
	}
	v, err := s.policies().Version(ctx, in.Fleet, in.Version)
	return readablePolicy(v), err
}

func (s *Server) listPolicies(ctx context.Context, in *struct {
	OfFleet
	api.Paging
},
) (api.Page[api.Policy], error) {
	if _, err := s.policies().Present(ctx, in.Fleet); err != nil {
		return api.Page[api.Policy]{}, err
	}
	list, next, err := s.policies().Versions(ctx, in.Fleet, in.After, limitOf(in.Paging))
	return page(list, next, shapePolicy), err
}

func (s *Server) checkPolicy(_ context.Context, in *struct{ Body api.PolicySource }) (api.PolicyCheck, error) {
	r := policies.Check(in.Body.Source)
	out := api.PolicyCheck{OK: len(r.Problems)+len(r.Failures) == 0, Warnings: shapeWarnings(r.Warnings)}
	for _, p := range r.Problems {
		out.Problems = append(out.Problems, api.PolicyProblem{Line: p.Line, Column: p.Column, Message: p.Message})
	}
	for _, f := range r.Failures {
		out.Failures = append(out.Failures, api.PolicyFailure{
			Test: f.Test, Line: f.Line, Act: f.Act, Want: string(f.Want), Decision: shapeDecision(f.Decision),
		})
	}
	return out, nil
}

func (s *Server) explainPolicy(ctx context.Context, in *struct{ Body api.PolicyQuestion }) (api.PolicyAnswer, error) {
	a, err := s.policies().Explain(ctx, policies.Question(in.Body))
	return api.PolicyAnswer{Fleet: a.Fleet, Version: a.Version, Decision: shapeDecision(a.Decision)}, err
}

func (s *Server) replayPolicy(ctx context.Context, in *struct {
	OfFleet
	Body api.PolicySource
},
) (api.PolicyReplay, error) {
	r, err := s.policies().Try(ctx, in.Fleet, in.Body.Source, s.Sessions())
	if err != nil {
		return api.PolicyReplay{}, err
	}
	out := api.PolicyReplay{
		Acts: r.Acts, Since: r.Since.UTC(), NowDenied: r.NowDenied, NowAllowed: r.NowAllowed, Sessions: r.Sessions, Changes: []api.ReplayedAct{},
	}
	for _, c := range r.Changes {
		out.Changes = append(out.Changes, api.ReplayedAct{
			Device: c.Device, ClientID: c.ClientID, Action: c.Action, Topic: c.Topic, Was: c.Was, At: c.At.UTC(), Times: c.Times,
			Decision: shapeDecision(c.Decision),
		})
	}
	for _, c := range r.Statements {
		out.Statements = append(out.Statements, api.PolicyStatement{ID: c.ID, What: c.What, Lines: c.Lines})
	}
	return out, nil
}

func (s *Server) applyPolicy(ctx context.Context, in *struct {
	OfFleet
	Body api.ApplyPolicy
},
) (api.AppliedPolicy, error) {
	by := s.by(ctx)
	return s.applied(ctx, in.Fleet, func() (policies.Version, bool, error) {
		return s.policies().Apply(ctx, policies.Draft{
			Fleet: in.Fleet, Source: in.Body.Source, Note: in.Body.Note, Expect: in.Body.Expect,
		}, by.Actor, by.Via)
	})
}

func (s *Server) rollbackPolicy(ctx context.Context, in *struct {
	OfFleet
	Body api.RollbackPolicy
},
) (api.AppliedPolicy, error) {
	by := s.by(ctx)
	return s.applied(ctx, in.Fleet, func() (policies.Version, bool, error) {
		return s.policies().Rollback(ctx, policies.Draft{Fleet: in.Fleet, Note: in.Body.Note, Expect: in.Body.Expect}, in.Body.To, by.Actor, by.Via)
	})
}

// applied tells what an application led to. The sessions are listed before it: some
// are cut before the answer is made.
func (s *Server) applied(ctx context.Context, fleet string, apply func() (policies.Version, bool, error)) (api.AppliedPolicy, error) {
	before := policies.OfFleet(s.Sessions(), fleet)
	v, changed, err := apply()
	if err != nil {
		return api.AppliedPolicy{}, err
	}
	out := api.AppliedPolicy{Policy: readablePolicy(v), Changed: changed}
	if !changed {
		return out, nil
	}
	lost, err := s.policies().CountLosers(ctx, v.Source, before)
	if err != nil { // it is applied all the same, and the sessions are cut by whoever heard of it
		s.Log.ErrorContext(ctx, "sessions that lose by a policy not counted", "fleet", fleet, "error", err)
	}
	out.Sessions = lost
	return out, nil
}

func shapePolicy(v policies.Version) api.Policy {
	return api.Policy{Fleet: v.Fleet, Version: v.Version, Note: v.Note, By: string(v.By), AppliedAt: v.At.UTC()}
}

// readablePolicy is shapePolicy with the document.
func readablePolicy(v policies.Version) api.Policy {
	p := shapePolicy(v)
	p.Source, p.Warnings = v.Source, shapeWarnings(policies.Check(v.Source).Warnings)
	return p
}

func shapeWarnings(list []policies.Warning) (out []api.PolicyWarning) {
	for _, w := range list {
		out = append(out, api.PolicyWarning{
			Code: w.Code, Check: w.Check, Severity: string(w.Severity), Statement: w.Statement, Line: w.Line, Column: w.Column, Message: w.Message,
		})
	}
	return out
}

func shapeDecision(d policies.Decision) api.PolicyDecision {
	return api.PolicyDecision{Allowed: d.Allowed, Statement: d.Statement, Line: d.Line, Pattern: d.Pattern, As: d.As, Why: d.Why}
}
