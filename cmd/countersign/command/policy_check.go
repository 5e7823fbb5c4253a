package command

import (
	"fmt"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/policy"
	"github.com/spf13/cobra"
)

func policyCheck(env *Env) *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use: "check FILE", Short: "Read a policy, tell what is unwise in it, and run its tests; needs no server",
		Example: `  countersign policy check pumps.yaml
  countersign policy check pumps.yaml --strict     in a pipeline: warnings fail too`,
		RunE: func(_ *cobra.Command, args []string) error {
			source, p, err := readPolicy(env, args[0])
			if err != nil {
				return err
			}
			warnings, failures := p.Lint(), p.RunTests()
			if env.output == formatJSON || env.output == formatYAML {
				if err := show(env, checkOf(warnings, failures), view[api.PolicyCheck]{}); err != nil {
					return err
				}
			} else {
				for _, w := range warnings {
					printPlace(env, args[0], source, spot{w.Line, w.Column, "warning", w.Code + ": " + w.Message})
				}
			}
			if len(failures) > 0 {
				return printFailures(env, args[0], source, failures)
			}
			env.stderr().done("%s: %s, %s that hold, %s", args[0], count(len(p.Statements), "statement"), count(len(p.Tests), "test"), count(len(warnings), "warning"))
			if strict && slices.ContainsFunc(warnings, func(w policy.Warning) bool { return w.Check != "" }) {
				return failed(exitFailed)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "fail on warnings that the audit would find too")
	return c
}

func checkOf(warnings []policy.Warning, failures []policy.Failure) api.PolicyCheck {
	out := api.PolicyCheck{OK: len(failures) == 0}
	for _, w := range warnings {
		out.Warnings = append(out.Warnings, api.PolicyWarning{
			Code: w.Code, Check: w.Check, Severity: string(w.Severity), Statement: w.Statement, Line: w.Line, Column: w.Column, Message: w.Message,
		})
	}
	for _, f := range failures {
		out.Failures = append(out.Failures, api.PolicyFailure{Test: f.Test, Line: f.Line, Act: f.Act, Want: string(f.Want), Decision: decisionOf(f.Decision)})
	}
	return out
}

func policyTest(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "test FILE", Short: "Run the tests that stand in a policy; needs no server",
		RunE: func(_ *cobra.Command, args []string) error {
			source, p, err := readPolicy(env, args[0])
			if err != nil {
				return err
			}
			if failures := p.RunTests(); len(failures) > 0 {
				return printFailures(env, args[0], source, failures)
			}
			acts := 0
			for _, t := range p.Tests {
				acts += len(t.Allow) + len(t.Deny)
			}
			env.stderr().done("%s: %s of %s hold", args[0], count(acts, "act"), count(len(p.Tests), "test"))
			return nil
		},
	}
}

func policyExplain(env *Env) *cobra.Command {
	var file, as string
	var q api.PolicyQuestion
	c := &cobra.Command{
		Use: "explain DEVICE ACTION [TOPIC]", Short: "Say what a client may do, and which statement decides",
		Long: `Say what a client may do, and which statement decides. ACTION is connect,
publish, subscribe, receive or retain; TOPIC is a topic, a filter for subscribe, or
a client identifier for connect.

DEVICE is one on record, with its tags as they are now. With --file and --as no
server is asked: --as says who DEVICE is, as in the tests of a policy.`,
		Example: `  countersign policy explain pump-7 publish devices/pump-7/up/t
  countersign policy explain pump-7 subscribe 'devices/+/down/#' --file draft.yaml
  countersign policy explain p1 publish site/north/t --file draft.yaml --as 'fleet: pumps, tags: {site: north}'
  countersign policy explain --app alice --scope pump-7 --fleet pumps publish devices/pump-7/down/restart`,
		Args:              explainArgs(&q),
		ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if q.App == "" && q.Guest == "" {
				q.Device, args = args[0], args[1:]
			}
			q.Action = args[0]
			if len(args) > 1 {
				q.Topic = args[1]
			}
			answer, err := explainPolicy(env, cmd, q, file, as)
			if err != nil {
				return err
			}
			return printDecision(env, answer)
		},
	}
	c.Flags().StringVar(&file, "file", "", "ask this policy instead of the one in force")
	c.Flags().StringVar(&as, "as", "", "who the device is, in YAML without braces: fleet, tags, cn, client; needs --file")
	c.Flags().StringVar(&q.Guest, "guest", "", "ask for a guest instead of a device")
	c.Flags().StringVar(&q.App, "app", "", "ask for the browser of this operator instead of a device")
	c.Flags().StringSliceVar(&q.Scope, "scope", nil, "devices that the app's session is for")
	fleetFlag(env, c, &q.Fleet, "fleet of a guest or an app")
	c.Flags().StringVar(&q.ClientID, "client-id", "", "client identifier; absent: the client's own name")
	return c
}

func explainArgs(q *api.PolicyQuestion) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		names := []string{"DEVICE", "ACTION"}
		if q.App != "" || q.Guest != "" {
			names = names[1:]
		}
		if len(args) == len(names)+1 {
			return nil
		}
		if err := exactly(names...)(cmd, args); err != nil {
			return err
		}
		if args[len(args)-1] != string(policy.Connect) {
			return usagef("TOPIC is missing: %s", cmd.UseLine())
		}
		return nil
	}
}

func explainPolicy(env *Env, cmd *cobra.Command, q api.PolicyQuestion, file, as string) (*api.PolicyAnswer, error) {
	if file == "" {
		if as != "" {
			return nil, usagef("--as needs --file: the server knows who its devices are")
		}
		return env.admin().ExplainPolicy(cmd.Context(), q)
	}
	source, p, err := readPolicy(env, file)
	if err != nil {
		return nil, err
	}
	if !cmd.Flags().Changed("as") {
		q.Source = string(source)
		return env.admin().ExplainPolicy(cmd.Context(), q)
	}
	s, err := policy.ParseSubject(subjectText(q, as))
	if err != nil {
		return nil, usagef("--as: %v", err)
	}
	return &api.PolicyAnswer{Fleet: s.Fleet, Version: -1, Decision: decisionOf(p.Explain(s, policy.Action(q.Action), q.Topic))}, nil
}

// subjectText writes who asks as a test does.
func subjectText(q api.PolicyQuestion, as string) string {
	parts := []string{}
	for key, v := range map[string]string{"device": q.Device, "guest": q.Guest, "app": q.App, "fleet": q.Fleet, "client": q.ClientID} {
		if v != "" {
			parts = append(parts, fmt.Sprintf("%s: %q", key, v))
		}
	}
	if len(q.Scope) > 0 {
		parts = append(parts, fmt.Sprintf("scope: [%s]", strings.Join(q.Scope, ", ")))
	}
	if as != "" {
		parts = append(parts, as)
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func printDecision(env *Env, answer *api.PolicyAnswer) error {
	return show(env, *answer, viewOf(env, "DECISION, WHY decision.why, STATEMENT decision.statement, PATTERN decision.pattern, HERE, POLICY", func(a api.PolicyAnswer) string {
		return verdict(a.Decision.Allowed)
	}, func(a api.PolicyAnswer) string {
		if a.Decision.As == a.Decision.Pattern {
			return ""
		}
		return a.Decision.As
	}, func(a api.PolicyAnswer) string { return strings.TrimSpace(a.Fleet + " " + policyVersion(a.Version)) }))
}
