package command

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func certCommand(env *Env) *cobra.Command {
	return group("cert", "Certificates that were issued", []string{"certs", "certificate", "certificates"},
		certList(env), certGet(env), certRevoke(env), certInspect(env))
}

func certView(env *Env, more string) view[api.Certificate] {
	return viewOf(env, "SERIAL serial, DEVICE, STATE state, ISSUER issuer, ISSUED issued_at, EXPIRES until:not_after, REASON reason"+more, holder)
}

// holder is the device, or what the authority's own certificate is for.
func holder(c api.Certificate) string {
	if c.Device == "" {
		return "(" + c.Profile + ")"
	}
	return c.Device
}

func certList(env *Env) *cobra.Command {
	var f api.CertificateFilter
	var within time.Duration
	c := listCommand(env, &cobra.Command{
		Use: "list", Short: "List certificates",
		Example: "  countersign cert list --state active --expires-within 168h",
		PreRun: func(*cobra.Command, []string) {
			if within != 0 {
				f.ExpiresBefore = env.Now().Add(within)
			}
		},
	}, filtered((*sdk.Admin).Certificates, &f), certView(env, ""))
	deviceFlag(env, c, &f.Device, "only this device")
	choiceFlag(c, &f.State, "state", "only this state", "pending", "active", "superseded", "held", "revoked")
	durationFlag(c.Flags(), &within, "expires-within", 0, "only those that expire within this time")
	return c
}

// certNames is the help on how a certificate is named.
const certNames = "SERIAL is the serial number in hex; where certificates of several issuers have it, write ISSUER/SERIAL."

func certGet(env *Env) *cobra.Command {
	var asPEM bool
	c := &cobra.Command{
		Use: "get SERIAL", Short: "Show one certificate's record", Long: certNames, ValidArgsFunction: first(serials(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := certName(args[0])
			if err != nil {
				return err
			}
			cert, err := env.admin().Certificate(cmd.Context(), name)
			if err != nil {
				return err
			}
			if asPEM {
				_, err := fmt.Fprint(env.Out, cert.PEM)
				return err
			}
			return show(env, *cert, certView(env, ", FLEET fleet, PROFILE profile, METHOD method, PREDECESSOR predecessor, USED used_at, SHA-256 hex:fingerprint"))
		},
	}
	c.Flags().BoolVar(&asPEM, "pem", false, "print the certificate itself")
	return c
}

func certRevoke(env *Env) *cobra.Command {
	var r api.Revoke
	var name string
	c := doCommand(env, &cobra.Command{
		Use: "revoke SERIAL --reason REASON", Short: "Take one certificate away, for good, and end the sessions that rest on it",
		Long: certNames, ValidArgsFunction: first(serials(env)),
	}, func(ctx context.Context, args []string) (cut *api.Cut, err error) {
		if name, err = certName(args[0]); err != nil {
			return nil, err
		}
		return env.admin().RevokeCertificate(ctx, name, r)
	}, func(p printer, cut *api.Cut) string {
		if cut.Already {
			p.done("certificate %s %s", shortName(name), was(cut.Already, "revoked for "+cut.Reason, cut.At))
		}
		printCut(env, cut, "revoked")
		p.linef("  undo: none")
		return name
	})
	revokeFlags(c, &r)
	needsReason(c, "")
	return asking(env, c, func(args []string) string {
		name, err := certName(args[0])
		if err != nil {
			name = args[0] // which is refused in a moment
		}
		return fmt.Sprintf("Revoke certificate %s? This cannot be undone.", shortName(name))
	})
}

// certName reads how people name a certificate: by its serial number or, where several
// issuers gave that one, by ISSUER/SERIAL.
func certName(arg string) (string, error) {
	if strings.Contains(arg, "/") {
		ref, err := countersign.ParseCertRef(arg)
		return ref.String(), err
	}
	serial, err := countersign.ParseSerial(arg)
	return string(serial), err
}

// shortName is short for a name as certName returns it.
func shortName(name string) string {
	i := strings.LastIndexByte(name, '/')
	return name[:i+1] + short(name[i+1:])
}

func ratio(n, of int) string { return fmt.Sprintf("%d/%d", n, of) }
