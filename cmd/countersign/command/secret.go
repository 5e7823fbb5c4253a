package command

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func secretCommand(env *Env) *cobra.Command {
	return group("secret", "Secrets that devices connect with, beside certificates", []string{"secrets"},
		secretCreate(env), secretSet(env), secretRotate(env),
		wholeList(env, &cobra.Command{
			Use: "list ID", Short: "List the secrets of a device, without the secrets themselves", ValidArgsFunction: first(deviceIDs(env)),
		}, under((*sdk.Admin).Secrets), viewOf(env, "SECRET id, SLOT slot, KIND, STATE state, AGE created_at, ENDS IN until:expires_at, USED used_at, BY created_by, REASON reason", secretKind)), secretStop(env))
}

// newSecret is what the flags of a new secret say.
type newSecret struct {
	n      api.NewSecret
	binary string // file for the raw octets
	file   string // with a chosen password
	raw    bool
	ttl    time.Duration
}

func (s *newSecret) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.n.Slot, "slot", "", "primary or secondary (default \"primary\")")
	durationFlag(c.Flags(), &s.ttl, "ttl", 0, "end by itself after this time, 1m to 87600h (default never)")
	complete(c, "slot", "primary", "secondary")
}

func (s *newSecret) drawn(c *cobra.Command) {
	s.flags(c)
	c.Flags().StringVar(&s.binary, "binary", "", "make 32 raw octets and write them into this new file")
}

// order makes the request of the flags.
func secretOrder(env *Env, s *newSecret) (api.NewSecret, error) {
	s.n.TTLSeconds, s.n.Binary = int64(s.ttl/time.Second), s.binary != ""
	if s.file == "" {
		return s.n, nil
	}
	b, err := env.readInput(s.file)
	if err != nil {
		return s.n, err
	}
	if !s.raw {
		b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	}
	if len(b) == 0 {
		return s.n, usagef("%s holds no secret", s.file)
	}
	s.n.Secret = b
	return s.n, nil
}

func secretCreate(env *Env) *cobra.Command {
	var s newSecret
	c := newSecretCommand(env, &s, &cobra.Command{
		Use: "create ID", Short: "Make a secret for a device; it is shown this once",
		Example: `  countersign device secret create pump-7 -o name > secret.txt
  countersign device secret create pump-7 --binary secret.bin`,
	})
	s.drawn(c)
	return c
}

func secretSet(env *Env) *cobra.Command {
	var s newSecret
	c := newSecretCommand(env, &s, &cobra.Command{
		Use: "set ID", Short: "Set a chosen password for a device, from a file or standard input",
		Example: `  countersign device secret set pump-7 < password.txt
  countersign device secret set pump-7 --file secret.bin --raw`,
	})
	s.flags(c)
	c.Flags().StringVar(&s.file, "file", "-", "file with it; - is standard input")
	c.Flags().BoolVar(&s.raw, "raw", false, "take every octet of it, the end of a line too")
	return c
}

func newSecretCommand(env *Env, s *newSecret, c *cobra.Command) *cobra.Command {
	c.ValidArgsFunction = first(deviceIDs(env))
	c.RunE = func(cmd *cobra.Command, args []string) error {
		n, err := secretOrder(env, s)
		if err != nil {
			return err
		}
		made, err := env.admin().CreateSecret(cmd.Context(), args[0], n)
		if err != nil {
			return err
		}
		return showSecret(env, made, s.binary)
	}
	return c
}

func secretRotate(env *Env) *cobra.Command {
	var s newSecret
	overlap := 24 * time.Hour
	c := &cobra.Command{
		Use: "rotate ID", Short: "Give a device the successor of its secret; the present one stays good for the overlap",
		Example: `  countersign device secret rotate pump-7 --overlap 72h -o name > secret.txt
  countersign device secret rotate pump-7 --overlap 0s --file password.txt`,
		ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := secretOrder(env, &s)
			if err != nil {
				return err
			}
			seconds := int64(overlap / time.Second)
			made, err := env.admin().RotateSecret(cmd.Context(), args[0], api.RotateSecret{NewSecret: n, OverlapSeconds: &seconds})
			if err != nil {
				return err
			}
			return showSecret(env, made, s.binary)
		},
	}
	s.drawn(c)
	durationFlag(c.Flags(), &overlap, "overlap", overlap, "how long the present one stays good, 0s to 720h; 0s ends its sessions")
	c.Flags().StringVar(&s.file, "file", "", "bring one along in this file; - is standard input (default one is made)")
	c.Flags().BoolVar(&s.raw, "raw", false, "take every octet of the file, the end of a line too")
	c.MarkFlagsMutuallyExclusive("file", "binary")
	return c
}

// showSecret shows what is not shown again.
func showSecret(env *Env, made *api.IssuedSecret, file string) error {
	p := env.stderr()
	what := map[bool]string{true: "password", false: "secret"}[made.Kind == "password"]
	p.done("%s %s of %s is good from now on", what, made.ID, made.Device)
	if file != "" {
		if err := writeNew(file, string(made.Octets)); err != nil {
			p.linef("  the octets, in base64, since they could not be written: %s", base64.StdEncoding.EncodeToString(made.Octets))
			return fmt.Errorf("couldn't write the secret: %w", err)
		}
		p.linef("  its %d octets are in %s, and nowhere else", len(made.Octets), file)
		made.Octets = nil
	} else if made.Text != "" && env.output == formatTable {
		p.linef("  it is not shown again")
	}
	return show(env, *made, viewOf[api.IssuedSecret](env, "USER NAME device, SECRET text, ID id").named(func(s api.IssuedSecret) string { return cmp.Or(s.Text, s.ID) }))
}

func secretKind(s api.Secret) string {
	if s.SCRAM {
		return s.Kind + ",scram"
	}
	return s.Kind
}

func secretStop(env *Env) *cobra.Command {
	var why string
	c := doCommand(env, &cobra.Command{
		Use: "stop ID SECRET", Short: "End a secret for good and the sessions that rest on it",
		Example:           "  countersign device secret stop pump-7 1f2e3d4c5b6a7988 --reason 'in a repository' --yes",
		ValidArgsFunction: first(deviceIDs(env)),
	}, func(ctx context.Context, args []string) (*api.StoppedSecret, error) {
		return env.admin().StopSecret(ctx, args[0], args[1], api.Act{Note: strings.TrimSpace(why)})
	}, func(p printer, stopped *api.StoppedSecret) string {
		p.done("secret %s %s, %d sessions closed", stopped.ID, stoppedWord(stopped.Already), stopped.Sessions)
		return stopped.ID
	})
	reasonFlag(c, &why)
	return asking(env, c, func(args []string) string {
		return fmt.Sprintf("Stop secret %s of %s? Its sessions end now. This cannot be undone.", args[1], args[0])
	})
}
