package command

import (
	"strings"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

// reasons are those that an operator may give (RFC 5280, 5.3.1).
var reasons = []string{
	"keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation", "privilegeWithdrawn", "unspecified",
}

func revokeFlags(c *cobra.Command, r *api.Revoke) {
	c.Flags().StringVar(&r.Reason, "reason", "", strings.Join(reasons, ", "))
	c.Flags().StringVar(&r.Note, "note", "", "why, in your words")
	complete(c, "reason", reasons...)
}

// printCut prints what an act took away; did is the word for the certificates.
func printCut(env *Env, cut *api.Cut, did string) {
	p := env.stderr()
	for _, c := range cut.Certificates {
		if cut.Already {
			continue // as it was
		}
		if cut.Reason != "" {
			p.done("certificate %s %s (%s)", short(c.Serial), did, cut.Reason)
		} else {
			p.done("certificate %s %s", short(c.Serial), did)
		}
	}
	if cut.Raised {
		p.linef("  revoked before for a reason that is less grave: it is %s now, in the next CRL and OCSP answer too", cut.Reason)
	}
	if len(cut.Certificates) == 0 && !cut.Already {
		p.done("no certificate to be %s", did)
	}
	switch took := time.Duration(cut.CutMicros) * time.Microsecond; cut.Sessions {
	case 0:
		p.done("no live session")
	case 1:
		p.done("1 session closed in %s", millis(took))
	default:
		p.done("%d sessions closed in %s", cut.Sessions, millis(took))
	}
	for _, l := range cut.CRLs {
		p.done("CRL #%d of %s published, OCSP answers %s", l.Number, l.Issuer, "revoked")
	}
}

// was is what became of a device, or what had become of it before.
func was(already bool, what string, at time.Time) string {
	if already {
		return "was " + what + " already, since " + at.UTC().Format(time.RFC3339)
	}
	return what
}

// stoppedWord is what became of a credential, or what had become of it before.
func stoppedWord(already bool) string {
	if already {
		return "was stopped already"
	}
	return "stopped"
}
