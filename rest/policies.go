package rest

import (
	"context"
	"log/slog"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/policies"
)

// maxPolicyBody is room for the largest document as a JSON string, where a line
// feed takes two octets and a control character six.
const maxPolicyBody = 256 << 10

// OfFleet is a path parameter.
type OfFleet struct {
	Fleet string `path:"fleet" maxLength:"63"`
}

// onFleet is an act on the policy of a fleet.
type onFleet[B any] struct {
	OfFleet
	Body B
}

// policyVersions serves the policies of fleets with their versions.
type policyVersions struct {
	policies *policies.Store
	live     func() []countersign.Session
	log      *slog.Logger
}

func (p *policyVersions) get(ctx context.Context, in *OfFleet) (api.Policy, error) {
	return as(readablePolicy)(p.policies.Present(ctx, in.Fleet))
}

func (p *policyVersions) version(ctx context.Context, in *struct {
	OfFleet
	Version int64 `path:"version" minimum:"0"`
},
) (api.Policy, error) {
	if _, err := p.policies.Present(ctx, in.Fleet); err != nil { // there is such a fleet
		return api.Policy{}, err
	}
	return as(readablePolicy)(p.policies.Version(ctx, in.Fleet, in.Version))
}

func (p *policyVersions) list(ctx context.Context, in *struct {
	OfFleet
	api.Paging
},
) (api.Page[api.Policy], error) {
	if _, err := p.policies.Present(ctx, in.Fleet); err != nil {
		return api.Page[api.Policy]{}, err
	}
	return asPage(shapePolicy)(p.policies.Versions(ctx, in.Fleet, in.After, limitOf(in.Paging)))
}

func (p *policyVersions) check(_ context.Context, in *body[api.PolicySource]) (api.PolicyCheck, error) {
	r := policies.Check(in.Body.Source)
	out := api.PolicyCheck{OK: len(r.Problems)+len(r.Failures) == 0, Warnings: shapeWarnings(r.Warnings)}
	for _, p := range r.Problems {
		out.Problems = append(out.Problems, api.PolicyProblem(p))
	}
	for _, f := range r.Failures {
		out.Failures = append(out.Failures, api.PolicyFailure{
			Test: f.Test, Line: f.Line, Act: f.Act, Want: string(f.Want), Decision: shapeDecision(f.Decision),
		})
	}
	return out, nil
}

func (p *policyVersions) explain(ctx context.Context, in *body[api.PolicyQuestion]) (api.PolicyAnswer, error) {
	return p.policies.Explain(ctx, in.Body)
}

func (p *policyVersions) replay(ctx context.Context, in *onFleet[api.PolicySource]) (api.PolicyReplay, error) {
	r, err := p.policies.Try(ctx, in.Fleet, in.Body.Source, p.live())
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

func (p *policyVersions) apply(ctx context.Context, in *onFleet[api.ApplyPolicy]) (api.AppliedPolicy, error) {
	by := byOf(ctx)
	return p.applied(ctx, in.Fleet, func() (policies.Version, bool, error) {
		return p.policies.Apply(ctx, policies.Draft{
			Fleet: in.Fleet, Source: in.Body.Source, Note: in.Body.Note, Expect: in.Body.Expect,
		}, by.Actor, by.Via)
	})
}

func (p *policyVersions) rollback(ctx context.Context, in *onFleet[api.RollbackPolicy]) (api.AppliedPolicy, error) {
	by := byOf(ctx)
	return p.applied(ctx, in.Fleet, func() (policies.Version, bool, error) {
		return p.policies.Rollback(ctx, policies.Draft{Fleet: in.Fleet, Note: in.Body.Note, Expect: in.Body.Expect}, in.Body.To, by.Actor, by.Via)
	})
}

// applied returns what an application led to. The sessions are listed before it: some
// are cut before the answer is made.
func (p *policyVersions) applied(ctx context.Context, fleet string, apply func() (policies.Version, bool, error)) (api.AppliedPolicy, error) {
	before := policies.OfFleet(p.live(), fleet)
	v, changed, err := apply()
	if err != nil {
		return api.AppliedPolicy{}, err
	}
	out := api.AppliedPolicy{Policy: readablePolicy(v), Changed: changed}
	if !changed {
		return out, nil
	}
	lost, err := p.policies.CountLosers(ctx, v.Source, before)
	if err != nil { // it is applied all the same, and the sessions are cut by the subscribers of its event
		p.log.ErrorContext(ctx, "sessions that lose by a policy not counted", "fleet", fleet, "error", err)
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
