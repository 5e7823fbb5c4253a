package access

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
)

// clockSkew is how far the start of a credential may be ahead of the server's clock.
const clockSkew = countersign.ClockSkew

// guestCredential is the credential of all guests' sessions: to cut it ends them all.
const guestCredential = "guest"

// vouchedCredential is the prefix of the credential of a session that a broker vouches for.
const vouchedCredential = "vouched:"

// Decision is a verdict with the facts that it is based on.
type Decision struct {
	countersign.Verdict
	// FirstUse is true if the certificate is pending, or if the device is registered and
	// proved a secret. The verdict is valid once the first use is on record.
	FirstUse bool
	// Replaced is true if the device has replaced the certificate by another one, so that
	// a client which presents it is a second holder of the identity.
	Replaced bool
	// Known is true if the certificate is on record or the secret is right. Device and
	// Fleet are then facts and not claims.
	Known bool
	// Kind is the kind of the credential that was presented; empty if there was none, or
	// if a broker vouches.
	Kind countersign.AccessKind
	// Claims is the device that the client claims to be, if it does and is not Known.
	Claims string
	// Tried is a keyed hash, 8 hex digits, of a wrong secret. It shows that one secret is
	// tried on many devices.
	Tried string
	// Ended is the time since which a certificate on record is not valid; zero if it was
	// refused for another reason.
	Ended time.Time
	// Subject is the client as the policy of the fleet sees it.
	Subject policy.Subject
	// Judged is true if the policy of the fleet was applied, because no other check failed.
	Judged bool
	// ReadOnly is true if the client may only subscribe, whatever the policy permits.
	ReadOnly bool
	// Path is the path of a manufacturer's certificate that is valid by CAs which are not
	// on record. The verdict is valid once they are.
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
