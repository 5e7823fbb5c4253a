package command

import (
	"context"
	"os/signal"
	"strings"
	"syscall"

	"github.com/countersign-iot/countersign/rest"
	"github.com/spf13/cobra"
)

// Run parses args, runs the command and returns the exit code. It is called once.
func (env *Env) Run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := rootCommand(env)
	root.SetArgs(args)
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	failed, err := root.ExecuteContextC(ctx)
	if err != nil && !env.started {
		err = &usageError{err.Error()}
	}
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil {
		return exitInterrupted
	}
	env.explain(err)
	if next := hintOf(err, failed); next != "" {
		env.stderr().linef("Run: %s", oneLine(next))
	}
	return exitCode(err)
}

func rootCommand(env *Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "countersign",
		Short: "Give every device an identity, and take it away at once",
		Example: `  countersign dev                                  start everything on this machine
  countersign enroll token -o name                 a token for one device
  countersign device list
  countersign device revoke pump-7 --reason keyCompromise`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: env.begin,
		RunE:              showHelp,
		Args:              noSuchCommand,
	}
	f := root.PersistentFlags()
	f.StringVar(&env.dir, "dir", "", "data folder of the server (default $COUNTERSIGN_DIR, else .countersign)")
	f.StringVarP(&env.output, "output", "o", formatTable, "table, wide, json, yaml or name")
	f.StringVar(&env.color, "color", "auto", "auto, always or never")
	f.BoolVar(&env.noInput, "no-input", false, "never ask, fail instead")
	durationFlag(f, &env.timeout, "timeout", defaultTimeout, "longest wait for one answer of the server")
	complete(root, "output", formats...)
	complete(root, "color", "auto", "always", "never")

	root.Version = rest.Version().Version
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetHelpCommand(helpCommand(root))
	root.AddCommand(
		devCommand(env), demoCommand(env), simulateCommand(env), serverCommand(env),
		deviceCommand(env), enrollCommand(env), sessionCommand(env), certCommand(env), caCommand(env),
		fleetCommand(env), profileCommand(env), policyCommand(env), blockCommand(env), holdCommand(env), alertCommand(env), accessTokenCommand(env), logCommand(env), auditCommand(env), operatorCommand(env),
		doctorCommand(env), versionCommand(env),
		environmentTopic(), exitCodesTopic(),
	)
	checkArguments(root)
	return root
}

// begin checks what all commands share.
func (env *Env) begin(*cobra.Command, []string) error {
	if err := oneOf("--output", env.output, formats...); err != nil {
		return err
	}
	if err := oneOf("--color", env.color, "auto", "always", "never"); err != nil {
		return err
	}
	if env.timeout <= 0 {
		return usagef("--timeout %s is not more than 0", env.timeout)
	}
	if env.output == formatWide {
		env.output, env.wide = formatTable, true
	}
	env.started = true
	return nil
}

// helpCommand is cobra's, which answers an unknown topic with success.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [command]", Short: "Help about any command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("there is no command or topic %q", strings.Join(args, " "))
			}
			return cmd.Help()
		},
	}
}

func environmentTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "environment",
		Short: "Environment variables that commands read",
		Long: `The environment of every command:

  COUNTERSIGN_DIR   data folder, where --dir is absent
  NO_COLOR          set to anything: no color
  CLICOLOR          0: no color
  CLICOLOR_FORCE    not 0: color even where the output is no terminal
  LC_ALL, LC_CTYPE, LANG
                    a locale that is not UTF-8 gets plain ASCII signs

A flag wins over the environment.`,
	}
}
