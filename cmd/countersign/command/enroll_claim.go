package command

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

// The files of a claim.
const (
	claimChain = "claim.pem"
	claimKey   = "claim.key"
)

func enrollClaim(env *Env) *cobra.Command {
	var b bounds
	var devices []string
	var csr, out string
	var temporary bool
	c := &cobra.Command{
		Use: "claim", Short: "Issue a claim certificate, which many devices share until each has its own",
		Example: `  countersign enroll claim --label batch-3 --uses 500 --ttl 720h --devices pump-0001..pump-0500 --network 10.1.0.0/16 --out claim
  countersign enroll claim --temporary -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bounds, err := b.read(env.Now())
			if err != nil {
				return err
			}
			n := api.NewClaim{Bounds: bounds, Devices: devices, Temporary: temporary}
			if out == "" && env.output != formatJSON && env.output != formatYAML {
				return usagef("--out is missing: a folder for %s and %s; or print it all with -o json", claimChain, claimKey)
			}
			if csr != "" {
				if n.CSR, err = readRequest(env, csr); err != nil {
					return err
				}
			}
			if err := freshFolder(out, claimChain, claimKey); err != nil {
				return err
			}
			made, err := env.admin().CreateClaim(cmd.Context(), n)
			if err != nil {
				return err
			}
			return showClaim(env, made, out)
		},
	}
	boundFlags(env, c, &b)
	c.Flags().StringSliceVar(&devices, "devices", nil, "ids that it may enroll: patterns with * and ?, ranges such as pump-0001..pump-0500")
	c.Flags().StringVar(&csr, "csr", "", "PKCS #10 request for a key of your own; else the server makes one and shows it once")
	c.Flags().StringVar(&out, "out", "", "folder for the chain and the key")
	c.Flags().BoolVar(&temporary, "temporary", false, "one use within five minutes, for somebody who stands at the device")
	return c
}

// freshFolder makes a folder, and sees that nothing in it would be overwritten.
func freshFolder(dir string, names ...string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, n := range names {
		if _, err := os.Lstat(filepath.Join(dir, n)); !errors.Is(err, fs.ErrNotExist) {
			return usagef("%s is there already: choose another folder", filepath.Join(dir, n))
		}
	}
	return nil
}

func showClaim(env *Env, made *api.IssuedClaim, out string) error {
	if out == "" {
		return show(env, *made, view[api.IssuedClaim]{})
	}
	files := map[string]string{claimChain: made.Chain, claimKey: made.Key}
	for name, text := range files {
		if text == "" {
			continue
		}
		if err := writeNew(filepath.Join(out, name), text); err != nil {
			return err
		}
	}
	env.stderr().done("claim %s for fleet %s, good %s, expires in %s, in %s; its key is not shown again",
		made.ID, made.Fleet, times(made.Uses), env.until(made.ExpiresAt), out)
	env.stderr().next("put both files into the devices; if they leak: countersign enroll stop %s", made.ID)
	return acted(env, made.Credential, made.ID)
}

// writeNew writes a secret into a file that was not there.
func writeNew(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the operator's own file
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
