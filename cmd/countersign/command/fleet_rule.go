package command

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
)

func fleetRule(env *Env) *cobra.Command {
	return group("rule", "The rules of a fleet, one by one", []string{"rules"}, ruleList(env), ruleGet(env), ruleSet(env), ruleUnset(env), ruleEdit(env))
}

// fleetRules reads a fleet's rules.
func fleetRules(ctx context.Context, env *Env, fleet string) (ruleset, error) {
	f, err := env.admin().Fleet(ctx, fleet)
	if err != nil {
		return nil, err
	}
	return rulesetOf(f.Rules)
}

// ruleLine is one line of a list of rules.
type ruleLine struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func ruleList(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "list FLEET", Aliases: []string{"ls"}, Short: "List the rules that are set", ValidArgsFunction: first(fleetNames(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			rules, err := fleetRules(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			all := rules.leaves()
			var rows []ruleLine
			for _, name := range slices.Sorted(maps.Keys(all)) {
				rows = append(rows, ruleLine{name, all[name]})
			}
			return list(env, itemsOf(rows), 0, viewOf[ruleLine](env, "RULE name, VALUE value"))
		},
	}
}

func ruleGet(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "get FLEET RULE", Short: "Show one rule", ValidArgsFunction: ruleArgs(env),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := ruleType(args[1]); err != nil {
				return err
			}
			rules, err := fleetRules(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			v, set := rules.at(args[1])
			if !set {
				return countersign.Errorf(countersign.NotFound, "the rule %s is not set in fleet %s", args[1], args[0])
			}
			if env.output != formatTable {
				return show(env, v, view[any]{name: ruleText})
			}
			object, nested := v.(map[string]any)
			if !nested {
				env.stdout().linef("%s", printable(ruleText(v)))
				return nil
			}
			all := ruleset(object).leaves()
			for _, name := range slices.Sorted(maps.Keys(all)) {
				env.stdout().linef("%s", printable(name+": "+all[name]))
			}
			return nil
		},
	}
}

// ruleArgs completes a fleet, then a rule.
func ruleArgs(env *Env) completer {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 1 {
			return ruleNames(), cobra.ShellCompDirectiveNoFileComp
		}
		return first(fleetNames(env))(cmd, args, word)
	}
}

func ruleSet(env *Env) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "set FLEET RULE VALUE", Short: "Set one rule; the others stay as they are",
		Example: `  countersign fleet rule set pumps networks 198.51.100.0/24,2001:db8::/32
  countersign fleet rule set pumps recovery '{max_age: 720h, max_times: 3}'
  countersign fleet rule set pumps recovery.max_times 5 --dry-run
  countersign fleet rule set pumps respond.shared_certificate alert,suspend`,
		ValidArgsFunction: ruleArgs(env),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := ruleValue(args[1], args[2])
			if err != nil {
				return err
			}
			return changeRules(cmd.Context(), env, ruleChange{fleet: args[0], dry: dry, yes: true, to: func(now ruleset) (ruleset, error) {
				return now.with(args[1], value), nil
			}})
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "show what would change, and change nothing")
	return c
}

func ruleUnset(env *Env) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "unset FLEET RULE", Short: "End one rule; its default counts again", ValidArgsFunction: ruleArgs(env),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := ruleType(args[1]); err != nil {
				return err
			}
			return changeRules(cmd.Context(), env, ruleChange{fleet: args[0], dry: dry, yes: true, to: func(now ruleset) (ruleset, error) {
				if _, set := now.at(args[1]); !set {
					return nil, countersign.Errorf(countersign.NotFound, "the rule %s is not set in fleet %s", args[1], args[0])
				}
				return now.with(args[1], nil), nil
			}})
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "show what would change, and change nothing")
	return c
}

func ruleEdit(env *Env) *cobra.Command {
	var dry, yes bool
	c := &cobra.Command{
		Use: "edit FLEET", Short: "Change the rules in your editor (VISUAL, else EDITOR)", ValidArgsFunction: first(fleetNames(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeRules(cmd.Context(), env, ruleChange{fleet: args[0], dry: dry, yes: yes, to: func(now ruleset) (ruleset, error) {
				return editRules(cmd.Context(), env, args[0], now)
			}})
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "show what would change, and change nothing")
	yesFlag(c, &yes)
	return c
}

// ruleChange is a change of a fleet's rules.
type ruleChange struct {
	fleet    string
	dry, yes bool
	to       func(now ruleset) (ruleset, error)
}

// changeRules shows what a change would do, as the server says it, and does it.
func changeRules(ctx context.Context, env *Env, c ruleChange) error {
	now, err := fleetRules(ctx, env, c.fleet)
	if err != nil {
		return err
	}
	to, err := c.to(now)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(now.patchTo(to))
	if err != nil {
		return err
	}
	tried, err := env.admin().PatchRules(ctx, c.fleet, patch, true)
	if err != nil {
		return err
	}
	d, err := diffOf(now, tried.Rules)
	if err != nil {
		return err
	}
	if len(d.lines) == 0 {
		env.stderr().linef("Nothing to change: the rules of fleet %s are so already.", printable(c.fleet))
		return acted(env, *tried, tried.Name)
	}
	d.show(env.stderr())
	if c.dry {
		env.stderr().linef("Nothing was changed.")
		return acted(env, *tried, tried.Name)
	}
	if err := env.confirm(c.yes, fmt.Sprintf("Change the rules of fleet %s?", c.fleet)); err != nil {
		return err
	}
	f, err := env.admin().PatchRules(ctx, c.fleet, patch, false)
	if err != nil {
		return err
	}
	env.stderr().done("fleet %s saved", f.Name)
	return acted(env, *f, f.Name)
}

func diffOf(now ruleset, rules *api.Rules) (ruleDiff, error) {
	to, err := rulesetOf(rules)
	if err != nil {
		return ruleDiff{}, err
	}
	return now.diff(to), nil
}

// editRules opens the rules as YAML in an editor, and reads what it left.
func editRules(ctx context.Context, env *Env, fleet string, now ruleset) (ruleset, error) {
	editor := env.Getenv("VISUAL")
	if editor == "" {
		editor = env.Getenv("EDITOR")
	}
	if editor == "" {
		return nil, usagef("no editor is named: set EDITOR, or use fleet rule set")
	}
	b, err := json.Marshal(now)
	if err != nil {
		return nil, err
	}
	text, err := yaml.JSONToYAML(b) // which keeps whole numbers whole
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "countersign-rules-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the editor: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "rules.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, fmt.Errorf("write the rules for the editor: %w", err)
	}
	run := exec.CommandContext(ctx, "sh", "-c", editor+` "$1"`, "sh", file) //nolint:gosec // the user's own editor
	run.Stdin, run.Stdout, run.Stderr = env.In, env.Out, env.Err
	if err := run.Run(); err != nil {
		return nil, usagef("the editor %s failed: %v", editor, err)
	}
	if text, err = os.ReadFile(file); err != nil { //nolint:gosec // written above
		return nil, fmt.Errorf("read what the editor left: %w", err)
	}
	to, err := readRuleset(text)
	if err != nil {
		return nil, usagef("the rules of fleet %s cannot be read, and were not changed: %v", fleet, err)
	}
	return to, nil
}
