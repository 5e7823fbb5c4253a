package ra

import (
	"context"
	"fmt"
	"sync"

	"cel.dev/cel-go/cel"

	"github.com/countersign-iot/countersign"
)

const (
	// maxCost bounds the evaluation of an expression in CEL's own unit; a rule that
	// looks at every name of a request costs a few hundred.
	maxCost = 20_000
	// maxPrograms bounds the compiled expressions that are kept: a fleet has one.
	maxPrograms = 256
)

// rules asks what is not in the evidence: the fleet's expression and its webhook.
type rules struct {
	hooks hooks

	mu       sync.Mutex
	env      *cel.Env
	programs map[string]cel.Program // by text
}

func (p *rules) compile(text string) (cel.Program, error) {
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
		return nil, countersign.Errorf(countersign.BadRequest, "the expression returns %s, not true or false", ast.OutputType())
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

func (p *rules) evaluate(ctx context.Context, text string, vars map[string]any) (bool, error) {
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
