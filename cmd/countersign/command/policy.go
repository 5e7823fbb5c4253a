package command

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func policyCommand(env *Env) *cobra.Command {
	c := group("policy", "What the clients of a fleet may do", []string{"policies"},
		&cobra.Command{
			Use: "init", Short: "Print a policy to begin with: the built-in one, with comments",
			RunE: func(*cobra.Command, []string) error {
				_, err := env.Out.Write(policy.Starter())
				return err
			},
		}, policyCheck(env), policyTest(env), policyExplain(env), policyDiff(env),
		policyReplay(env), policyApply(env), policyGet(env),
		listCommand(env, &cobra.Command{
			Use: "history FLEET", Short: "List the versions of a fleet's policy, newest first", ValidArgsFunction: first(fleetNames(env)),
		}, under((*sdk.Admin).PolicyVersions), policyView(env)), policyRollback(env))
	c.Example = `  countersign policy init > pumps.yaml
  countersign policy check pumps.yaml
  countersign policy replay pumps pumps.yaml
  countersign policy apply pumps pumps.yaml --note 'valves listen to alarms'`
	return c
}

func policyView(env *Env) view[api.Policy] {
	return viewOf(env, "VERSION, APPLIED past:applied_at, BY by, NOTE note", func(p api.Policy) string {
		return policyVersion(p.Version)
	}).named(func(p api.Policy) string { return strconv.FormatInt(p.Version, 10) })
}

func policyGet(env *Env) *cobra.Command {
	var version int64
	c := &cobra.Command{
		Use: "get FLEET", Short: "Print the policy in force, or an older version",
		Example: `  countersign policy get pumps > pumps.yaml
  countersign policy get pumps --version 3`,
		ValidArgsFunction: first(fleetNames(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := policyAt(env, cmd, args[0], version)
			if err != nil {
				return err
			}
			if env.output != formatTable {
				return show(env, *p, policyView(env))
			}
			env.stderr().linef("# version %s of fleet %s", policyVersion(p.Version), printable(p.Fleet))
			_, err = fmt.Fprint(env.Out, p.Source)
			return err
		},
	}
	c.Flags().Int64Var(&version, "version", -1, "this version; 0 is the built-in policy")
	return c
}

// policyAt gets a version of a fleet's policy; below 0 the one in force.
func policyAt(env *Env, cmd *cobra.Command, fleet string, version int64) (*api.Policy, error) {
	if version < 0 {
		return env.admin().Policy(cmd.Context(), fleet)
	}
	return env.admin().PolicyVersion(cmd.Context(), fleet, version)
}

func policyApply(env *Env) *cobra.Command {
	var p api.ApplyPolicy
	var expect int64
	var yes bool
	c := &cobra.Command{
		Use: "apply FLEET FILE", Short: "Put a policy in force; sessions that lose by it are cut",
		Long: `Put a policy in force for a fleet, at once and on every node. Its tests must
hold. Live sessions that would have less than they have are cut, up to 1,000 a
second on each node, and come back under the new policy; others stay as they are
until they connect again.`,
		Example: `  countersign policy apply pumps pumps.yaml --note 'valves listen to alarms'
  countersign policy apply pumps pumps.yaml --expect 4     only if version 4 is in force`,
		ValidArgsFunction: first(fleetNames(env)),
	}
	doCommand(env, c, func(ctx context.Context, args []string) (*api.AppliedPolicy, error) {
		source, read, err := readPolicy(env, args[1])
		if err != nil {
			return nil, err
		}
		if failed := read.RunTests(); len(failed) > 0 {
			return nil, printFailures(env, args[1], source, failed)
		}
		p.Source, p.Expect = string(source), changed(c, "expect", &expect)
		if err := confirmPolicy(ctx, env, yes, api.Policy{Fleet: args[0], Source: p.Source}, fmt.Sprintf("Apply %s to fleet %s?", args[1], args[0])); err != nil {
			return nil, err
		}
		return env.admin().ApplyPolicy(ctx, args[0], p)
	}, printApplied)
	c.Flags().StringVar(&p.Note, "note", "", "what changes, in your words")
	c.Flags().Int64Var(&expect, "expect", 0, "refuse unless this version is in force")
	yesFlag(c, &yes)
	return c
}

// confirmPolicy asks before a policy is put in force, and says first what it does.
func confirmPolicy(ctx context.Context, env *Env, yes bool, p api.Policy, question string) error {
	r, err := env.admin().ReplayPolicy(ctx, p.Fleet, p.Source)
	if err != nil {
		return err
	}
	return env.confirm(yes, fmt.Sprintf("%s It cuts %s on this node; of %s seen of late %d would now be denied and %d allowed.",
		question, count(r.Sessions, "live session"), count(r.Acts, "different act"), r.NowDenied, r.NowAllowed))
}

func printApplied(p printer, done *api.AppliedPolicy) string {
	name := strconv.FormatInt(done.Version, 10)
	if !done.Changed {
		p.linef("Nothing changed: version %s of fleet %s says the same.", policyVersion(done.Version), printable(done.Fleet))
		return name
	}
	p.done("version %d of the policy of fleet %s is in force; %s on this node lose by it and are cut", done.Version, done.Fleet, count(done.Sessions, "live session"))
	for _, w := range done.Warnings {
		p.linef("  warning: %s", printable(warningText(w.Code, w.Line, w.Message)))
	}
	p.linef("  undo: countersign policy rollback %s --to %d", printable(done.Fleet), done.Version-1)
	return name
}

func policyRollback(env *Env) *cobra.Command {
	var p api.RollbackPolicy
	var expect int64
	var yes bool
	c := &cobra.Command{
		Use: "rollback FLEET", Short: "Put an older version in force, as a new one",
		Example: `  countersign policy rollback pumps --to 3
  countersign policy rollback pumps --to 0     the built-in policy`,
		ValidArgsFunction: first(fleetNames(env)),
	}
	doCommand(env, c, func(ctx context.Context, args []string) (*api.AppliedPolicy, error) {
		old, err := env.admin().PolicyVersion(ctx, args[0], p.To)
		if err != nil {
			return nil, err
		}
		old.Fleet, p.Expect = args[0], changed(c, "expect", &expect)
		if err := confirmPolicy(ctx, env, yes, *old, fmt.Sprintf("Go back to version %s of fleet %s?", policyVersion(p.To), args[0])); err != nil {
			return nil, err
		}
		return env.admin().RollbackPolicy(ctx, args[0], p)
	}, printApplied)
	c.Flags().Int64Var(&p.To, "to", 0, "the version to go back to; 0 is the built-in policy")
	c.Flags().StringVar(&p.Note, "note", "", "why, in your words")
	c.Flags().Int64Var(&expect, "expect", 0, "refuse unless this version is in force")
	yesFlag(c, &yes)
	if err := c.MarkFlagRequired("to"); err != nil {
		panic(err) // a flag that is not there
	}
	return c
}

func policyReplay(env *Env) *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "replay FLEET FILE", Short: "Try a policy on what devices did of late; nothing changes",
		ValidArgsFunction: first(fleetNames(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			source, _, err := readPolicy(env, args[1])
			if err != nil {
				return err
			}
			r, err := env.admin().ReplayPolicy(cmd.Context(), args[0], string(source))
			if err != nil {
				return err
			}
			if env.output == formatJSON || env.output == formatYAML {
				return show(env, *r, view[api.PolicyReplay]{})
			}
			if err := list(env, itemsOf(r.Changes), limit, replayView(env)); err != nil {
				return err
			}
			p := env.stderr()
			p.linef("Of %s since %s: %d would now be denied, %d allowed.", count(r.Acts, "different act"), env.ago(r.Since), r.NowDenied, r.NowAllowed)
			p.linef("To apply it would cut %s on this node.", count(r.Sessions, "live session"))
			return nil
		},
	}
	limitFlag(c, &limit)
	return c
}

func replayView(env *Env) view[api.ReplayedAct] {
	return viewOf(env, "NOW, DEVICE device, ACTION action, TOPIC topic, LAST at, BY", func(r api.ReplayedAct) string {
		return verdict(r.Decision.Allowed)
	}, func(r api.ReplayedAct) string {
		return decidedBy(r.Decision.Statement, r.Decision.Line)
	}).named(func(r api.ReplayedAct) string { return r.Device + " " + r.Action + " " + r.Topic })
}

func decidedBy(statement string, line int) string {
	if statement == "" {
		return "no statement"
	}
	return fmt.Sprintf("%s, line %d", statement, line)
}

func policyDiff(env *Env) *cobra.Command {
	var from, to int64
	c := &cobra.Command{
		Use: "diff FLEET [FILE]", Short: "Compare the policy in force with a file, or two versions",
		Example: `  countersign policy diff pumps pumps.yaml
  countersign policy diff pumps --from 3 --to 4
  countersign policy diff pumps --from 0           what differs from the built-in policy`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return exactly("FLEET")(cmd, args)
		},
		ValidArgsFunction: first(fleetNames(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			old, err := parsedPolicy(env, cmd, args[0], from)
			if err != nil {
				return err
			}
			var now *policy.Policy
			if len(args) == 2 {
				_, now, err = readPolicy(env, args[1])
			} else {
				now, err = parsedPolicy(env, cmd, args[0], to)
			}
			if err != nil {
				return err
			}
			return printDiff(env, policy.Diff(old, now))
		},
	}
	c.Flags().Int64Var(&from, "from", -1, "compare this version; absent: the one in force")
	c.Flags().Int64Var(&to, "to", -1, "with this one; absent: the one in force")
	return c
}

func parsedPolicy(env *Env, cmd *cobra.Command, fleet string, version int64) (*policy.Policy, error) {
	p, err := policyAt(env, cmd, fleet, version)
	if err != nil {
		return nil, err
	}
	return policy.Parse([]byte(p.Source))
}

func printDiff(env *Env, changes []policy.Change) error {
	out := make([]api.PolicyStatement, 0, len(changes))
	for _, c := range changes {
		out = append(out, api.PolicyStatement{ID: c.ID, What: c.What, Lines: c.Lines})
	}
	p := env.stdout()
	switch {
	case env.output == formatJSON:
		return writeJSON(p.w, out)
	case env.output == formatYAML:
		return writeYAML(p.w, out)
	case len(out) == 0:
		env.stderr().linef("They say the same.")
		return nil
	}
	for _, c := range out {
		p.linef("%s %s", c.What, c.ID)
		for _, l := range c.Lines {
			paint := p.green
			if strings.HasPrefix(l, "-") {
				paint = p.red
			}
			p.linef("  %s", paint(printable(l)))
		}
	}
	return nil
}
