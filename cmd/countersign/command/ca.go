package command

import (
	"context"
	"fmt"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func caCommand(env *Env) *cobra.Command {
	return group("ca", "Certification authorities", []string{"authority", "authorities"},
		listCommand(env, &cobra.Command{Use: "list", Short: "List authorities"}, all((*sdk.Admin).Authorities), caView(env, "")),
		getCommand(env, &cobra.Command{Use: "get ID", Short: "Show one authority"}, authorityIDs(env), (*sdk.Admin).Authority, caView(env, ", KEY key_uri, SERIAL hex:serial, SHA-256 hex:fingerprint")), caExport(env), caRegisterCode(env), caRegister(env), caSetCRL(env))
}

func caView(env *Env, more string) view[api.Authority] {
	return viewOf[api.Authority](env, "ID id, KIND kind, PARENT parent, STATE state, EXPIRES until:not_after, SUBJECT subject"+more)
}

func caExport(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "export [ID]", Short: "Print an authority's certificate as PEM; without an id, all roots",
		Example: "  countersign ca export > roots.pem",
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: first(authorityIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				c, err := env.admin().Authority(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				_, err = fmt.Fprint(env.Out, c.PEM)
				return err
			}
			for c, err := range env.admin().Authorities(cmd.Context()) {
				if err != nil {
					return err
				}
				if c.Kind != "root" || c.State != "active" {
					continue
				}
				if _, err := fmt.Fprint(env.Out, c.PEM); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func caRegisterCode(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "register-code", Short: "Draw a code that a manufacturer's CA signs over to be registered",
		RunE: func(cmd *cobra.Command, _ []string) error {
			code, err := env.admin().RegistrationCode(cmd.Context())
			if err != nil {
				return err
			}
			if env.output == formatTable {
				env.stderr().done("code for one registration, good for %s", env.until(code.ExpiresAt))
				env.stderr().next("have the CA sign a certificate with this common name, then: countersign ca register ID --cert ca.pem --verification proof.pem")
				env.stdout().linef("%s", code.Code)
				return nil
			}
			return show(env, *code, view[api.RegistrationCode]{name: func(c api.RegistrationCode) string { return c.Code }})
		},
	}
}

func caRegister(env *Env) *cobra.Command {
	var n api.NewAuthority
	var cert, verification string
	var intermediates, lists []string
	c := doCommand(env, &cobra.Command{
		Use: "register ID --cert FILE", Short: "Register the CA of a manufacturer",
		Example: `  countersign ca register acme --cert acme.pem --verification proof.pem --crl acme.crl
  countersign ca register acme --cert acme.pem --override --reason 'offline root, checked by phone'`,
	}, func(ctx context.Context, args []string) (_ *api.Authority, err error) {
		switch {
		case cert == "":
			return nil, usagef("--cert is missing")
		case (verification == "") != n.Override:
			return nil, usagef("give --verification, or --override with a --reason")
		case n.Override && n.Reason == "":
			return nil, usagef("--reason is missing: why can the CA not prove that it has its key?")
		}
		n.ID = args[0]
		if n.Certificate, err = text(env, cert); err != nil {
			return nil, err
		}
		if n.Verification, err = text(env, verification); err != nil {
			return nil, err
		}
		if n.Intermediates, err = textFiles(env, intermediates); err != nil {
			return nil, err
		}
		if n.CRLs, err = files(env, lists); err != nil {
			return nil, err
		}
		return env.admin().RegisterAuthority(ctx, n)
	}, func(p printer, made *api.Authority) string {
		p.done("authority %s registered: %s", made.ID, made.Subject)
		p.next("countersign fleet set FLEET --method idevid; countersign fleet rule set FLEET authorities %s", made.ID)
		return made.ID
	})
	f := c.Flags()
	f.StringVar(&cert, "cert", "", "the CA's certificate, PEM")
	f.StringArrayVar(&intermediates, "intermediate", nil, "PEM of a CA below it, for devices that send too little; may be repeated")
	f.StringArrayVar(&lists, "crl", nil, "revocation list of it or of a CA below, DER or PEM; may be repeated")
	f.BoolVar(&n.RequireCRL, "require-crl", false, "refuse where there is no list for a link")
	f.BoolVar(&n.Legacy, "legacy", false, "accept a chain without key identifiers, and a CA with basicConstraints that are not critical or with serial number 0")
	f.StringVar(&verification, "verification", "", "PEM of a certificate that it signed over a code of: countersign ca register-code")
	f.BoolVar(&n.Override, "override", false, "register without that, on your word; the log records it")
	f.StringVar(&n.Reason, "reason", "", "why, with --override")
	return c
}

func caSetCRL(env *Env) *cobra.Command {
	var p api.PutCRLs
	var lists, intermediates []string
	c := doCommand(env, &cobra.Command{
		Use: "crl-set ID --crl FILE", Short: "Bring the revocation lists of a registered authority up to date",
		Long: `A list takes the place of the one before it by the same issuer, if it is newer; the
others stay. Sessions and connections of devices whose certificate is on a list, or
a CA above it, end at once.`,
		Example: `  countersign ca crl-set acme --crl acme.crl --crl acme-line-2.crl
  countersign ca crl-set acme --crl acme.crl --override --reason 'the CA was restored and counts from 1 again'`,
		ValidArgsFunction: first(authorityIDs(env)),
	}, func(ctx context.Context, args []string) (_ *api.Authority, err error) {
		switch {
		case len(lists) == 0 && !p.Override:
			return nil, usagef("--crl is missing")
		case p.Override != (p.Reason != ""):
			return nil, usagef("give --override and --reason together: why may older lists take the place of newer ones?")
		}
		if p.CRLs, err = files(env, lists); err != nil {
			return nil, err
		}
		if p.Intermediates, err = textFiles(env, intermediates); err != nil {
			return nil, err
		}
		return env.admin().PutCRLs(ctx, args[0], p)
	}, func(o printer, made *api.Authority) string {
		o.done("authority %s has the %d revocation lists", made.ID, len(p.CRLs))
		return made.ID
	})
	f := c.Flags()
	f.StringArrayVar(&lists, "crl", nil, "revocation list, DER or PEM; may be repeated")
	f.StringArrayVar(&intermediates, "intermediate", nil, "PEM of a CA below it that signed a list and is not known yet; may be repeated")
	f.BoolVar(&p.Override, "override", false, "replace all lists by these on your word, newer ones too")
	f.StringVar(&p.Reason, "reason", "", "why, with --override")
	return c
}
