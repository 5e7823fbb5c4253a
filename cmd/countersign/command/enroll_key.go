package command

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/spf13/cobra"
)

func enrollKey(env *Env) *cobra.Command {
	var n api.NewKey
	var keys string
	c := &cobra.Command{
		Use: "key --device ID", Short: "Register the symmetric key of one device; it is shown this once",
		Example: `  countersign enroll key --device pump-7 -o name > key.txt
  countersign enroll key --device pump-7 --keys given.txt`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if n.Primary, n.Secondary, err = givenKeys(env, keys); err != nil {
				return err
			}
			made, err := env.admin().CreateKey(cmd.Context(), n)
			if err != nil {
				return err
			}
			return showKey(env, made, "device "+made.Device)
		},
	}
	deviceFlag(env, c, &n.Device, "the device")
	keyFlags(env, c, &n.Fleet, &keys)
	c.Flags().StringVar(&n.Label, "label", "", "your name for it")
	return needs(c, "device", "")
}

func enrollGroup(env *Env) *cobra.Command {
	var n api.NewGroupKey
	var keys string
	c := &cobra.Command{
		Use: "group --label NAME", Short: "Register a key from which those of many devices are derived; it is shown this once",
		Example: "  countersign enroll group --label line-3 --fleet pumps -o name > group.key",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if n.Primary, n.Secondary, err = givenKeys(env, keys); err != nil {
				return err
			}
			made, err := env.admin().CreateGroupKey(cmd.Context(), n)
			if err != nil {
				return err
			}
			if env.output == formatTable {
				env.stderr().next("keep it in the factory: countersign enroll derive --key FILE ID")
			}
			return showKey(env, made, "group "+made.Label)
		},
	}
	c.Flags().StringVar(&n.Label, "label", "", "name of the group")
	keyFlags(env, c, &n.Fleet, &keys)
	return needs(c, "label", "")
}

func keyFlags(env *Env, c *cobra.Command, fleet, keys *string) {
	fleetFlag(env, c, fleet, "fleet that it lets in to (default the device's, else \"default\")")
	c.Flags().StringVar(keys, "keys", "", "file with a key in base64, and a second one on the next line; - is standard input (default both are drawn)")
}

// givenKeys reads one or two keys, each on a line of its own.
func givenKeys(env *Env, file string) (primary, secondary string, err error) {
	if file == "" {
		return "", "", nil
	}
	text, err := env.readInput(file)
	if err != nil {
		return "", "", err
	}
	switch f := strings.Fields(string(text)); len(f) {
	case 1:
		return f[0], "", nil
	case 2:
		return f[0], f[1], nil
	}
	return "", "", usagef("%s does not hold one or two keys, each on a line", file)
}

func showKey(env *Env, made *api.IssuedKey, whose string) error {
	if env.output == formatTable {
		env.stderr().done("keys of %s in fleet %s, as %s; they are not shown again", whose, made.Fleet, made.ID)
	}
	return show(env, *made, viewOf[api.IssuedKey](env, "PRIMARY primary, SECONDARY secondary"))
}

// derived is the key of one device of a group.
type derived struct {
	Device string `json:"device"`
	Key    string `json:"key"`
}

func enrollDerive(env *Env) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "derive --key FILE ID...", Short: "Derive the keys of devices from their group's key; needs no server",
		Example: "  countersign enroll derive --key group.key pump-7 -o name",
		Args:    cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, ids []string) error {
			if len(ids) == 0 {
				return usagef("ID is missing")
			}
			text, err := env.readInput(file)
			if err != nil {
				return err
			}
			group, err := attest.ParseSymmetricKey(strings.TrimSpace(string(text)))
			if err != nil {
				return err
			}
			keys := make([]derived, len(ids))
			for i, id := range ids {
				if err := countersign.CheckDeviceID(id); err != nil {
					return err
				}
				keys[i] = derived{id, base64.StdEncoding.EncodeToString(attest.DeriveKey(group, id))}
			}
			return list(env, itemsOf(keys), 0, viewOf[derived](env, "DEVICE device, KEY key").named(func(d derived) string { return d.Key }))
		},
	}
	c.Flags().StringVar(&file, "key", "", "file with the group's key in base64; - is standard input")
	return needs(c, "key", "")
}

func enrollThumbprint(env *Env) *cobra.Command {
	var n api.NewThumbprint
	var cert, second string
	c := doCommand(env, &cobra.Command{
		Use: "thumbprint --device ID", Short: "Register a device's self-signed certificate, and a second one",
		Example: `  countersign enroll thumbprint --device pump-7 --cert self.pem
  countersign enroll thumbprint --device pump-7 --sha256 4f1a... --secondary 77b2...`,
	}, func(ctx context.Context, _ []string) (*api.Credential, error) {
		if err := thumbprint(env, "--cert", cert, "--sha256", &n.Primary); err != nil {
			return nil, err
		}
		if n.Primary == "" {
			return nil, usagef("--cert or --sha256 is missing")
		}
		if err := thumbprint(env, "--secondary-cert", second, "--secondary", &n.Secondary); err != nil {
			return nil, err
		}
		return env.admin().CreateThumbprint(ctx, n)
	}, func(p printer, made *api.Credential) string {
		p.done("certificate of device %s registered in fleet %s, as %s", made.Device, made.Fleet, made.ID)
		return made.ID
	})
	f := c.Flags()
	deviceFlag(env, c, &n.Device, "the device")
	fleetFlag(env, c, &n.Fleet, "fleet that it lets in to (default the device's, else \"default\")")
	f.StringVar(&n.Label, "label", "", "your name for it")
	f.StringVar(&cert, "cert", "", "the certificate, PEM or DER")
	f.StringVar(&n.Primary, "sha256", "", "or the SHA-256 of its DER in hex")
	f.StringVar(&second, "secondary-cert", "", "another certificate that will do as well")
	f.StringVar(&n.Secondary, "secondary", "", "or its SHA-256")
	return needs(c, "device", "")
}

// thumbprint fills hash in from the certificate in a file, if one was named.
func thumbprint(env *Env, flag, file, other string, hash *string) error {
	if file == "" {
		return nil
	}
	if *hash != "" {
		return usagef("%s and %s say the same: give one of them", flag, other)
	}
	b, err := env.readInput(file)
	if err != nil {
		return err
	}
	if block, _ := pem.Decode(b); block != nil {
		if block.Type != "CERTIFICATE" {
			return usagef("%s holds a %s, not a certificate", file, block.Type)
		}
		b = block.Bytes
	}
	sum := sha256.Sum256(b)
	*hash = hex.EncodeToString(sum[:])
	return nil
}

func enrollTPM(env *Env) *cobra.Command {
	var n api.NewTPM
	var ek string
	c := doCommand(env, &cobra.Command{
		Use: "tpm", Short: "Register the endorsement key of a TPM 2.0 that has no manufacturer's certificate",
		Example: `  countersign enroll tpm --device pump-7 --ek ek.pub
  countersign enroll tpm --sha256 $(sha256sum ek.pub | cut -d' ' -f1)`,
	}, func(ctx context.Context, _ []string) (_ *api.Credential, err error) {
		if (ek == "") == (n.EKHash == "") {
			return nil, usagef("give --ek or --sha256")
		}
		if ek != "" {
			if n.EKPublic, err = env.readInput(ek); err != nil {
				return nil, err
			}
		}
		return env.admin().CreateTPM(ctx, n)
	}, func(p printer, made *api.Credential) string {
		p.done("endorsement key registered in fleet %s, as %s", made.Fleet, made.ID)
		return made.ID
	})
	f := c.Flags()
	deviceFlag(env, c, &n.Device, "the one id that it may enroll (default what the chip or its request says)")
	fleetFlag(env, c, &n.Fleet, "fleet that it lets in to (default the device's, else \"default\")")
	f.StringVar(&n.Label, "label", "", "your name for it")
	f.StringVar(&ek, "ek", "", "its public area: tpm2_createek -u ek.pub")
	f.StringVar(&n.EKHash, "sha256", "", "or the SHA-256 of that in hex")
	return c
}
