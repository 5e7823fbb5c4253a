package audit

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
)

// founding is how long the first list of an authority may take.
const founding = time.Hour

// lookAtAuthorities looks at the CAs themselves and at the lists they publish.
func lookAtAuthorities(ctx context.Context, w *work) error {
	t, err := w.readTrust(ctx)
	if err != nil {
		return err
	}
	for i := range t.authorities {
		a := &t.authorities[i]
		if a.State != "active" {
			continue
		}
		for _, c := range above(a) {
			w.looked(1, CAExpiring, CARevoked, CAKeyQuality)
			w.found(CAExpiring, judgeCAExpiring(a, c, w.expiring[a.ID], w.now))
			w.found(CARevoked, judgeCARevoked(a, c, t))
			w.found(CAKeyQuality, w.judgeCAKey(a, c))
		}
		for _, l := range a.Lists {
			w.looked(1, CRLStale)
			w.found(CRLStale, judgeForeignList(a, l, w.now))
		}
		for i := range t.published {
			if l := &t.published[i]; l.Issuer == a.ID {
				w.looked(1, CRLStale)
				w.found(CRLStale, judgeList(l, a.CreatedAt, w.now))
			}
		}
	}
	return nil
}

func authorityFinding(a *ca.AuthorityRecord, c *x509.Certificate, reason, format string, args ...any) *Finding {
	return &Finding{
		Reason: reason, Subject: "authority:" + a.ID, Cert: countersign.CertRef{Issuer: a.ID, Serial: countersign.SerialOf(c.SerialNumber)},
		Summary:  fmt.Sprintf(format, args...),
		Evidence: map[string]string{"kind": string(a.Kind), "subject": c.Subject.String(), "not_after": stamp(c.NotAfter)},
	}
}

func judgeCAExpiring(a *ca.AuthorityRecord, c *x509.Certificate, set countersign.Span, now time.Time) *Finding {
	left := c.NotAfter.Sub(now)
	switch {
	case left < 0:
		return authorityFinding(a, c, "CERTIFICATE_PAST_EXPIRATION", "the certificate of %s at authority %s ended %s ago", c.Subject, a.ID, days(left))
	case left <= endsSoon(set, c.NotBefore, c.NotAfter):
		return authorityFinding(a, c, "CERTIFICATE_APPROACHING_EXPIRATION", "the certificate of %s at authority %s ends in %s", c.Subject, a.ID, days(left))
	}
	return nil
}

func judgeCARevoked(a *ca.AuthorityRecord, c *x509.Certificate, t *trust) *Finding {
	why, revoked := t.revoked(c)
	if !revoked {
		return nil
	}
	return authorityFinding(a, c, "CERTIFICATE_REVOKED_BY_ISSUER", "%s at authority %s was revoked by its issuer and is still trusted here", c.Subject, a.ID).
		with("revocation_reason", why.reason.String()).with("revoked_at", stamp(why.at))
}

func (w *work) judgeCAKey(a *ca.AuthorityRecord, c *x509.Certificate) *Finding {
	reason, why := keyFault(c, w.WeakKeys)
	if reason == "" {
		return nil
	}
	return authorityFinding(a, c, reason, "the key of %s at authority %s: %s", c.Subject, a.ID, why)
}

// judgeForeignList looks at a list that an operator loaded for an external CA.
func judgeForeignList(a *ca.AuthorityRecord, l *x509.RevocationList, now time.Time) *Finding {
	if a.Kind != countersign.RegisteredAuthority || l.NextUpdate.IsZero() || !now.After(l.NextUpdate) {
		return nil
	}
	f := authorityFinding(a, a.Certificate, "CRL_PAST_NEXT_UPDATE", "the list of %s at authority %s ended %s ago", l.Issuer, a.ID, days(now.Sub(l.NextUpdate)))
	if !a.RequireCRL {
		f.Severity = countersign.SeverityMedium // its devices are not refused for it
	}
	return f.with("next_update", stamp(l.NextUpdate))
}

// judgeList looks at a list of ours: a new one is due at half of its life.
func judgeList(l *countersign.CRL, founded, now time.Time) *Finding {
	f := &Finding{Subject: "authority:" + l.Issuer, Evidence: map[string]string{"shard": fmt.Sprint(l.Shard)}}
	switch {
	case l.Number == 0 && now.Sub(founded) > founding:
		f.Reason, f.Summary = "CRL_NEVER_PUBLISHED", fmt.Sprintf("authority %s never published a revocation list", l.Issuer)
		return f
	case l.Number == 0:
		return nil
	case now.After(l.NextUpdate):
		f.Reason, f.Summary = "CRL_PAST_NEXT_UPDATE", fmt.Sprintf("the revocation list of %s ended %s ago: relying parties refuse its devices", l.Issuer, days(now.Sub(l.NextUpdate)))
	case now.Sub(l.ThisUpdate) > l.NextUpdate.Sub(l.ThisUpdate)*3/4:
		f.Reason, f.Summary = "CRL_PUBLICATION_LATE", fmt.Sprintf("the revocation list of %s should have been followed by a new one", l.Issuer)
		f.Severity = countersign.SeverityMedium
	default:
		return nil
	}
	return f.with("this_update", stamp(l.ThisUpdate)).with("next_update", stamp(l.NextUpdate))
}
