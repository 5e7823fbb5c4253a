package command

import (
	"context"
	"os/user"

	"github.com/spf13/cobra"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/server"
)

// acceptRestoredCommand accepts a database that a start refused as too old.
func acceptRestoredCommand(env *Env, file *string) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "accept-restored", Short: "Accept a database that is older than the last state that this node saw",
		Long: `A start refuses a database that is older than the last state that this node saw: it
was restored from a backup, and what was recorded since then is lost, revocations too.
Where there is no newer state this command accepts the loss. It raises the numbers of
the CRLs above those that were published, has the log go on behind what it lost, and
records what is missing in an event, which doctor, the audit and an alert show. Do it
on each node that refuses, while the node is stopped.`,
		Example: "  countersign server accept-restored --config /etc/countersign/countersign.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return mend(cmd.Context(), env, *file, yes, "Accept that what was recorded since the backup is lost, revocations too?", func(ctx context.Context, cfg config.Config, opts server.Options) error {
				lost, err := server.AcceptRestored(ctx, cfg, opts)
				if err != nil {
					return err
				}
				p := env.stderr()
				p.done("accepted: %s", lost)
				p.linef("Find out what was recorded in between, revocations first, and do it again.")
				p.next("countersign server run%s", serverFlags(env, cfg, *file))
				return nil
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// replaceSealingKeyCommand makes a new sealing key where the old one is lost.
func replaceSealingKeyCommand(env *Env, file *string) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "replace-sealing-key", Short: "Make a new sealing key where the old one is lost for good",
		Long: `The sealing key, keys/seal.key, encrypts the symmetric keys and SCRAM secrets of devices
in the database and authenticates access tokens. A start refuses to go on without it.
Where neither another node nor a backup has it any more, this command makes a new one:
what was sealed with the old one is lost, and those devices need new keys or secrets.
Copy the new key to the other nodes.`,
		Example: "  countersign server replace-sealing-key --config /etc/countersign/countersign.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return mend(cmd.Context(), env, *file, yes, "Give up all that was sealed with the old key?", func(ctx context.Context, cfg config.Config, opts server.Options) error {
				path, err := server.ReplaceSealingKey(ctx, cfg, opts)
				if err != nil {
					return err
				}
				p := env.stderr()
				p.done("a new sealing key is in %s", path)
				p.next("countersign server run%s", serverFlags(env, cfg, *file))
				return nil
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// mend does something to a server that is stopped, after a person said yes.
func mend(ctx context.Context, env *Env, file string, yes bool, question string, do func(context.Context, config.Config, server.Options) error) error {
	cfg, err := loadConfig(env, file)
	if err != nil {
		return err
	}
	if err := refuseBad(env, cfg); err != nil {
		return err
	}
	if err := env.confirm(yes, question); err != nil {
		return err
	}
	opts := options(env, cfg, false)
	opts.By = localOperator()
	return startError(env, do(ctx, cfg, opts), cfg, file)
}

// localOperator names the Unix user who acts on this machine.
func localOperator() countersign.Actor {
	if u, err := user.Current(); err == nil {
		return countersign.OperatorActor("local:" + u.Username)
	}
	return countersign.OperatorActor("local")
}
