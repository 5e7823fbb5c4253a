package sdk

import (
	"context"
	"iter"
	"strconv"

	"github.com/countersign-iot/countersign/api"
)

// Policy gets the policy of a fleet that is in force, with its source.
func (a *Admin) Policy(ctx context.Context, fleet string) (*api.Policy, error) {
	return get[api.Policy](ctx, a, policyPath(fleet, ""))
}

// PolicyVersion gets one version of a fleet's policy; 0 is the built-in one.
func (a *Admin) PolicyVersion(ctx context.Context, fleet string, version int64) (*api.Policy, error) {
	return get[api.Policy](ctx, a, policyPath(fleet, "/versions/"+strconv.FormatInt(version, 10)))
}

// PolicyVersions lists the versions of a fleet's policy, newest first, without
// their sources.
func (a *Admin) PolicyVersions(ctx context.Context, fleet string) iter.Seq2[api.Policy, error] {
	return list[api.Policy](ctx, a, policyPath(fleet, "/versions"), query())
}

// CheckPolicy has the server read a draft and run its tests.
func (a *Admin) CheckPolicy(ctx context.Context, source string) (*api.PolicyCheck, error) {
	return post[api.PolicyCheck](ctx, a, "/policies/check", api.PolicySource{Source: source})
}

// ExplainPolicy asks what a client may do, and what decides.
func (a *Admin) ExplainPolicy(ctx context.Context, q api.PolicyQuestion) (*api.PolicyAnswer, error) {
	return post[api.PolicyAnswer](ctx, a, "/policies/explain", q)
}

// ReplayPolicy tries a draft on what was decided of late, and returns what it would
// do to the sessions that are open.
func (a *Admin) ReplayPolicy(ctx context.Context, fleet, source string) (*api.PolicyReplay, error) {
	return post[api.PolicyReplay](ctx, a, policyPath(fleet, "/replay"), api.PolicySource{Source: source})
}

// ApplyPolicy puts a draft in force. Sessions that lose something are cut.
func (a *Admin) ApplyPolicy(ctx context.Context, fleet string, p api.ApplyPolicy) (*api.AppliedPolicy, error) {
	return post[api.AppliedPolicy](ctx, a, policyPath(fleet, "/apply"), p)
}

// RollbackPolicy puts an older version in force, as a new one.
func (a *Admin) RollbackPolicy(ctx context.Context, fleet string, p api.RollbackPolicy) (*api.AppliedPolicy, error) {
	return post[api.AppliedPolicy](ctx, a, policyPath(fleet, "/rollback"), p)
}

func policyPath(fleet, rest string) string { return "/policies/" + segment(fleet) + rest }
