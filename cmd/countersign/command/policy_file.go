package command

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/policy"
)

// readPolicy reads a file, and prints all that is wrong with it.
func readPolicy(env *Env, file string) ([]byte, *policy.Policy, error) {
	source, err := env.readInput(file)
	if err != nil {
		return nil, nil, err
	}
	p, err := policy.Parse(source)
	if pe, ok := errors.AsType[*policy.ParseError](err); ok {
		for _, problem := range pe.Problems {
			printPlace(env, file, source, spot{problem.Line, problem.Column, "error", problem.Message})
		}
		return nil, nil, failed(exitFailed)
	}
	return source, p, err
}

// spot is something to say about a place in a file.
type spot struct {
	line, column  int
	kind, message string
}

// printPlace says it, and shows the line.
func printPlace(env *Env, file string, source []byte, at spot) {
	p := env.stderr()
	kind := p.yellow(at.kind)
	if at.kind == "error" || at.kind == "failed" {
		kind = p.red(at.kind)
	}
	if at.line == 0 {
		p.linef("%s: %s: %s", printable(file), kind, printable(at.message))
		return
	}
	p.linef("%s:%d:%d: %s: %s", printable(file), at.line, max(at.column, 1), kind, printable(at.message))
	lines := strings.Split(string(source), "\n")
	if at.line > len(lines) {
		return
	}
	p.linef("%6d | %s", at.line, printable(strings.ReplaceAll(lines[at.line-1], "\t", " ")))
	if at.column > 0 {
		p.linef("       | %s^", strings.Repeat(" ", at.column-1))
	}
}

func warningText(code string, line int, message string) string {
	if line == 0 {
		return fmt.Sprintf("%s: %s", code, message)
	}
	return fmt.Sprintf("line %d: %s: %s", line, code, message)
}

// printFailures shows the act of each test that does not hold, and what decided.
func printFailures(env *Env, file string, source []byte, failures []policy.Failure) error {
	for _, f := range failures {
		want := "allowed"
		if f.Want == policy.Deny {
			want = "denied"
		}
		printPlace(env, file, source, spot{f.Line, 0, "failed", fmt.Sprintf("%s: %q is to be %s, but %s", f.Test, f.Act, want, f.Decision.Why)})
	}
	verb := "do"
	if len(failures) == 1 {
		verb = "does"
	}
	env.stderr().linef("%s %s not hold.", count(len(failures), "act"), verb)
	return failed(exitFailed)
}

func decisionOf(d policy.Decision) api.PolicyDecision { return api.PolicyDecision(d) }

func verdict(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}

// policyVersion names a version for people.
func policyVersion(v int64) string {
	switch v {
	case 0:
		return "0 (built in)"
	case -1:
		return "draft"
	}
	return strconv.FormatInt(v, 10)
}
