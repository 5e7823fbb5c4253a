package access

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
)

// clockSkew is how far the start of what is shown may be ahead of our clock.
const clockSkew = countersign.ClockSkew

// guestCredential is what guests' sessions rest on: a cut of it ends them all.
const guestCredential = "guest"

// vouchedCredential begins the credential of a session that a broker vouches for.
const vouchedCredential = "vouched:"

// Decision is a verdict with what it rests on.
type Decision struct {
	countersign.Verdict
	// FirstUse: the certificate is pending, or the device is registered and came by a
	// secret. The verdict holds once the first use is on record.
	FirstUse bool
	// Replaced: the certificate was given up by its device for another, so a client that
	// shows it is a second holder of the identity.
	Replaced bool
	// Known: the certificate is on record, or the secret is right, so Device and Fleet
	// are facts and not claims.
	Known bool
	// Kind of the credential that was shown; empty: none, or a broker vouches.
	Kind countersign.AccessKind
	// Claims is the device that the client says it is, where it does and is not Known.
	Claims string
	// Tried is a keyed hash, 8 hex digits, of what was shown in vain, by which one
	// secret that is tried on many devices can be seen.
	Tried string
	// Ended is since when a certificate on record is good no more; zero where that is
	// not what it was refused for.
	Ended time.Time
	// Subject is the client as the policy of the fleet sees it.
	Subject policy.Subject
	// Judged: the policy of the fleet was asked, since all else was in order.
	Judged bool
	// ReadOnly: it may do nothing but listen, whatever the policy says.
	ReadOnly bool
	// Path of a manufacturer's certificate, where it is valid by CAs that are not on
	// record: the verdict holds once they are.
	Path []*x509.Certificate
}

func refuse(code countersign.Code, reason string) Decision {
	return Decision{Verdict: countersign.Verdict{Code: code, Reason: reason}}
}

func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

func ago(d time.Duration) string {
	if d < time.Second {
		return "0 s"
	}
	if d < time.Minute {
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	if d < time.Hour {
		return fmt.Sprintf("%d min", int(d.Minutes()))
	}
	if d < 48*time.Hour {
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

func unreadable() Decision {
	return refuse(countersign.Unavailable, "the record of the device cannot be read now")
}
