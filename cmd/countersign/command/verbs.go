package command

import (
	"context"
	"strings"

	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

// This file holds the commands that many nouns have. Each is made from a command that
// has its words already: Use, Short, Long, Example.

// group makes a noun of its verbs.
func group(use, short string, alias []string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Aliases: alias, RunE: showHelp, Args: noSuchCommand}
	c.AddCommand(verbs...)
	return c
}

// listCommand lists objects of one kind, page by page, all or as many as --limit says.
func listCommand[T any](env *Env, c *cobra.Command, seq lister[T], v view[T]) *cobra.Command {
	var limit int
	limitFlag(c, &limit)
	return listing(env, c, &limit, seq, v)
}

// wholeList lists the objects of a list that is never long.
func wholeList[T any](env *Env, c *cobra.Command, seq lister[T], v view[T]) *cobra.Command {
	return listing(env, c, new(int), seq, v)
}

func listing[T any](env *Env, c *cobra.Command, limit *int, seq lister[T], v view[T]) *cobra.Command {
	if c.Name() == "list" {
		c.Aliases = append(c.Aliases, "ls")
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return list(env, seq(env.paged(*limit), cmd.Context(), args), *limit, v)
	}
	return c
}

// getCommand shows the object that its one argument names.
func getCommand[T any](env *Env, c *cobra.Command, names completer, get func(*sdk.Admin, context.Context, string) (*T, error), v view[T]) *cobra.Command {
	c.ValidArgsFunction = first(names)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		item, err := get(env.admin(), cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return show(env, *item, v)
	}
	return c
}

// actCommand does something to the object that its one argument names. say writes what
// was done and returns the name of the object.
func actCommand[T any](env *Env, c *cobra.Command, names completer, act func(*sdk.Admin, context.Context, string) (*T, error), say func(printer, *T) string) *cobra.Command {
	if names != nil {
		c.ValidArgsFunction = first(names)
	}
	return doCommand(env, c, func(ctx context.Context, args []string) (*T, error) { return act(env.admin(), ctx, args[0]) }, say)
}

// doCommand does something and prints the object that it answers where a format was
// asked for. say writes what was done and returns the name of the object.
func doCommand[T any](env *Env, c *cobra.Command, act func(ctx context.Context, args []string) (*T, error), say func(printer, *T) string) *cobra.Command {
	c.RunE = func(cmd *cobra.Command, args []string) error {
		item, err := act(cmd.Context(), args)
		if err != nil {
			return err
		}
		return acted(env, *item, say(env.stderr(), item))
	}
	return c
}

// with is an act that takes what flags fill in.
func with[T, P any](act func(*sdk.Admin, context.Context, string, P) (*T, error), p *P) func(*sdk.Admin, context.Context, string) (*T, error) {
	return func(admin *sdk.Admin, ctx context.Context, name string) (*T, error) { return act(admin, ctx, name, *p) }
}

// acted prints the object that an act answered where a format was asked for; in
// a table the line with the check mark has said it all.
func acted[T any](env *Env, item T, name string) error {
	if env.output == formatTable {
		return nil
	}
	return show(env, item, view[T]{name: func(T) string { return name }})
}

// asking makes c ask before it acts, unless --yes is set.
func asking(env *Env, c *cobra.Command, question func(args []string) string) *cobra.Command {
	var yes bool
	yesFlag(c, &yes)
	act := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := env.confirm(yes, question(args)); err != nil {
			return err
		}
		return act(cmd, args)
	}
	return c
}

// needsReason makes c refuse to run without --reason; hint follows what it says then.
func needsReason(c *cobra.Command, hint string) *cobra.Command { return needs(c, "reason", hint) }

// needs makes c refuse to run without a flag; hint follows what it says then.
func needs(c *cobra.Command, flag, hint string) *cobra.Command {
	c.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flag(flag).Value.String() == "" {
			return usagef("--%s is missing%s", flag, hint)
		}
		return nil
	}
	return c
}

// checkArguments adds to each command without a check of its arguments the one that its
// line of use describes.
func checkArguments(c *cobra.Command) {
	if c.Args == nil && c.RunE != nil {
		c.Args = exactly(arguments(c.Use)...)
	}
	for _, sub := range c.Commands() {
		checkArguments(sub)
	}
}

// arguments returns the names of the arguments that a line of use requires.
func arguments(use string) (names []string) {
	for _, w := range strings.Fields(use)[1:] {
		if strings.ContainsAny(w[:1], "-[|") {
			break
		}
		names = append(names, w)
	}
	return names
}

// exactly is cobra.ExactArgs with the names of what is missing.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s is missing: %s", names[len(args)], cmd.UseLine())
		}
		if len(args) > len(names) {
			return usagef("%q is too much: %s", args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

// shown prints what is shown this once: secret alone on standard output, for a pipe,
// and beside it what it is, or the whole object where a format was asked for.
func shown[T any](env *Env, item T, secret, format string, args ...any) error {
	if env.output != formatTable {
		return show(env, item, view[T]{name: func(T) string { return secret }})
	}
	env.stderr().done(format, args...)
	env.stdout().linef("%s", secret)
	return nil
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// noSuchCommand words the mistake of a word where a command is due.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	for wrong := range 2 { // letters; the nearest command first
		cmd.SuggestionsMinimumDistance = wrong + 1
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			return usagef("there is no command %q in %q, did you mean %q?", args[0], cmd.CommandPath(), near[0])
		}
	}
	return usagef("there is no command %q in %q", args[0], cmd.CommandPath())
}
