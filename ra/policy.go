package ra

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"cel.dev/cel-go/cel"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
)

const (
	// maxCost bounds the evaluation of an expression in CEL's own unit; a rule that
	// looks at every name of a request costs a few hundred.
	maxCost = 20_000
	// maxPrograms bounds the compiled expressions that are kept: a fleet has one.
	maxPrograms = 256
)

// policy asks what is not in the evidence: the fleet's expression and its webhook.
type policy struct {
	hooks hooks

	mu       sync.Mutex
	env      *cel.Env
	programs map[string]cel.Program // by text
}

// permit asks both; each must say yes.
func (p *policy) permit(ctx context.Context, d *Authority, r *request, c *consideration) error {
	if text := c.fleet.Rules.Expression; text != "" {
		ok, err := p.evaluate(ctx, text, variables(r, c, d.Now()))
		if err != nil { // fail closed, with the reason
			return countersign.Errorf(countersign.NotAllowed, "the rule of fleet %s could not be applied: %v", c.fleet.Name, err).WithNext("correct the fleet's expression")
		}
		if !ok {
			return countersign.Errorf(countersign.NotAllowed, "the rule of fleet %s says no", c.fleet.Name).WithNext("read the fleet's expression: countersign fleet get " + c.fleet.Name)
		}
	}
	if c.fleet.Rules.Webhook == nil || r.dry {
		return nil
	}
	return p.hooks.ask(ctx, d, r, c)
}

// CheckRules compiles and type-checks what the rules say without running it.
func (d *Authority) CheckRules(u countersign.Rules) error {
	if u.Expression != "" {
		if _, err := d.policy.compile(u.Expression); err != nil {
			return err
		}
	}
	if u.Webhook != nil {
		return d.checkWebhook(u.Webhook)
	}
	return nil
}

func (p *policy) compile(text string) (cel.Program, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if prg, ok := p.programs[text]; ok {
		return prg, nil
	}
	if p.env == nil {
		env, err := cel.NewEnv(
			cel.Variable("csr", cel.MapType(cel.StringType, cel.DynType)),
			cel.Variable("evidence", cel.MapType(cel.StringType, cel.StringType)),
			cel.Variable("device", cel.MapType(cel.StringType, cel.DynType)),
			cel.Variable("fleet", cel.StringType),
			cel.Variable("remote", cel.StringType),
			cel.Variable("now", cel.TimestampType),
		)
		if err != nil {
			return nil, fmt.Errorf("prepare expressions: %w", err)
		}
		p.env = env
	}
	ast, issues := p.env.Compile(text)
	if issues.Err() != nil {
		return nil, countersign.Errorf(countersign.BadRequest, "the expression does not compile: %v", issues.Err()).
			WithNext("use csr, evidence, device, fleet, remote and now; see docs/enrollment.md")
	}
	if ast.OutputType() != cel.BoolType {
		return nil, countersign.Errorf(countersign.BadRequest, "the expression gives %s, not true or false", ast.OutputType())
	}
	prg, err := p.env.Program(ast, cel.CostLimit(maxCost), cel.InterruptCheckFrequency(100))
	if err != nil {
		return nil, fmt.Errorf("prepare an expression: %w", err)
	}
	if p.programs == nil || len(p.programs) >= maxPrograms {
		p.programs = map[string]cel.Program{}
	}
	p.programs[text] = prg
	return prg, nil
}

func (p *policy) evaluate(ctx context.Context, text string, vars map[string]any) (bool, error) {
	prg, err := p.compile(text)
	if err != nil {
		return false, err
	}
	out, _, err := prg.ContextEval(ctx, vars)
	if err != nil {
		return false, err
	}
	ok, isBool := out.Value().(bool)
	return ok && isBool, nil
}

// variables are what an expression sees.
func variables(r *request, c *consideration, now time.Time) map[string]any {
	kind, _ := ca.CheckKey(r.csr.PublicKey) // parse has checked it
	evidence := map[string]string{"method": string(c.method), "fingerprint": c.evidence}
	maps.Copy(evidence, c.facts)
	return map[string]any{
		"csr":      map[string]any{"cn": r.csr.Subject.CommonName, "subject": r.csr.Subject.String(), "key": kind, "dns": r.csr.DNSNames, "uris": r.csr.URIs},
		"evidence": evidence,
		"device": map[string]any{
			"id": r.device, "known": c.known, "state": string(c.standing.device.State), "owner": c.standing.device.Owner, "tags": c.standing.device.Tags,
		},
		"fleet": r.fleet, "remote": r.Remote.Addr().String(), "now": now,
	}
}
