package command

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"

	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

func enrollThumbprint(env *Env) *cobra.Command {
	var n api.NewThumbprint
	var cert, second string
	c := &cobra.Command{
		Use: "thumbprint --device ID", Short: "Register a device's self-signed certificate, and a second one",
		Example: `  countersign enroll thumbprint --device pump-7 --cert self.pem
  countersign enroll thumbprint --device pump-7 --sha256 4f1a... --secondary 77b2...`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n.Device == "" {
				return usagef("--device is missing")
			}
			if err := thumbprint(env, "--cert", cert, "--sha256", &n.Primary); err != nil {
				return err
			}
			if n.Primary == "" {
				return usagef("--cert or --sha256 is missing")
			}
			if err := thumbprint(env, "--secondary-cert", second, "--secondary", &n.Secondary); err != nil {
				return err
			}
			made, err := env.admin().CreateThumbprint(cmd.Context(), n)
			if err != nil {
				return err
			}
			env.stderr().done("certificate of device %s registered in fleet %s, as %s", made.Device, made.Fleet, made.ID)
			return acted(env, *made, made.ID)
		},
	}
	f := c.Flags()
	f.StringVar(&n.Device, "device", "", "the device")
	f.StringVar(&n.Fleet, "fleet", "", "fleet that it lets in to (default the device's, else \"default\")")
	f.StringVar(&n.Label, "label", "", "your name for it")
	f.StringVar(&cert, "cert", "", "the certificate, PEM or DER")
	f.StringVar(&n.Primary, "sha256", "", "or the SHA-256 of its DER in hex")
	f.StringVar(&second, "secondary-cert", "", "another certificate that will do as well")
	f.StringVar(&n.Secondary, "secondary", "", "or its SHA-256")
	completeWith(c, "device", deviceIDs(env))
	completeWith(c, "fleet", fleetNames(env))
	return c
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
	c := &cobra.Command{
		Use: "tpm", Short: "Register the endorsement key of a TPM 2.0 that has no manufacturer's certificate",
		Example: `  countersign enroll tpm --device pump-7 --ek ek.pub
  countersign enroll tpm --sha256 $(sha256sum ek.pub | cut -d' ' -f1)`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if (ek == "") == (n.EKHash == "") {
				return usagef("give --ek or --sha256")
			}
			if ek != "" {
				if n.EKPublic, err = env.readInput(ek); err != nil {
					return err
				}
			}
			made, err := env.admin().CreateTPM(cmd.Context(), n)
			if err != nil {
				return err
			}
			env.stderr().done("endorsement key registered in fleet %s, as %s", made.Fleet, made.ID)
			return acted(env, *made, made.ID)
		},
	}
	f := c.Flags()
	f.StringVar(&n.Device, "device", "", "the one id that it may enroll (default what the chip or its request says)")
	f.StringVar(&n.Fleet, "fleet", "", "fleet that it lets in to (default the device's, else \"default\")")
	f.StringVar(&n.Label, "label", "", "your name for it")
	f.StringVar(&ek, "ek", "", "its public area: tpm2_createek -u ek.pub")
	f.StringVar(&n.EKHash, "sha256", "", "or the SHA-256 of that in hex")
	completeWith(c, "device", deviceIDs(env))
	completeWith(c, "fleet", fleetNames(env))
	return c
}
