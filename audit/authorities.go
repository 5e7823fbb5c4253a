package audit

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
)

const (
	// maxDepth bounds the way up from a certificate to its root.
	maxDepth = 10
	// founding is how long the first list of an authority may take.
	founding = time.Hour
)

// oidCertificateIssuer marks the entries of indirect lists (RFC 5280, 5.3.3).
var oidCertificateIssuer = asn1.ObjectIdentifier{2, 5, 29, 29}

// trust is what is known of CAs and of what they revoked.
type trust struct {
	authorities []ca.AuthorityRecord
	published   []countersign.CRL              // the records of our own lists
	cas         map[string][]*x509.Certificate // all known CAs by raw subject
	entries     map[string]map[string]revocation
}

// revocation is one entry of a list.
type revocation struct {
	reason countersign.ReasonCode
	at     time.Time
}

// readTrust reads the authorities, and the lists that external CAs and our own
// roots signed. Those of our issuing authorities are not needed for it.
func (w *work) readTrust(ctx context.Context) (*trust, error) {
	t := &trust{cas: map[string][]*x509.Certificate{}, entries: map[string]map[string]revocation{}}
	var err error
	if t.authorities, err = ca.Records(ctx, w.DB); err != nil {
		return nil, err
	}
	if t.published, err = ca.ListRecords(ctx, w.DB); err != nil {
		return nil, err
	}
	roots := map[string]bool{}
	for i := range t.authorities {
		a := &t.authorities[i]
		roots[a.ID] = a.Kind == countersign.RootAuthority
		for _, c := range above(a) {
			t.cas[string(c.RawSubject)] = append(t.cas[string(c.RawSubject)], c)
		}
	}
	for _, l := range t.published {
		if !roots[l.Issuer] || l.Number == 0 {
			continue
		}
		list, err := ca.RecordedList(ctx, w.DB, l.Issuer, l.Shard)
		if err != nil {
			return nil, err
		}
		t.add(list)
	}
	for i := range t.authorities {
		for _, l := range t.authorities[i].Lists {
			t.add(l)
		}
	}
	return t, nil
}

// above returns the certificates of an authority and of the CAs that it brought in.
func above(a *ca.AuthorityRecord) []*x509.Certificate {
	return append([]*x509.Certificate{a.Certificate}, a.Intermediates...)
}

// add takes the entries of a list in that one of the known CAs signed. Who was on a
// list once is revoked, be it out of date; holds and indirect lists are left to the
// doors, which judge the whole path at each connection.
func (t *trust) add(l *x509.RevocationList) {
	signed := slices.ContainsFunc(t.cas[string(l.RawIssuer)], func(c *x509.Certificate) bool { return l.CheckSignatureFrom(c) == nil })
	if !signed {
		return
	}
	for _, e := range l.RevokedCertificateEntries {
		reason := countersign.ReasonCode(e.ReasonCode)
		for _, x := range e.Extensions {
			if x.Id.Equal(oidCertificateIssuer) {
				return
			}
		}
		if reason == countersign.CertificateHold || reason == countersign.RemoveFromCRL {
			continue
		}
		by := t.entries[string(l.RawIssuer)]
		if by == nil {
			by = map[string]revocation{}
			t.entries[string(l.RawIssuer)] = by
		}
		by[string(e.SerialNumber.Bytes())] = revocation{reason, e.RevocationTime}
	}
}

// revoked reports whether its issuer revoked the certificate.
func (t *trust) revoked(c *x509.Certificate) (revocation, bool) {
	r, ok := t.entries[string(c.RawIssuer)][string(c.SerialNumber.Bytes())]
	return r, ok
}

// revokedAbove returns a CA above the certificate that was revoked; nil if none was.
// Of several CAs with one name and key, as after a renewal, one good one is enough.
func (t *trust) revokedAbove(c *x509.Certificate) *x509.Certificate {
	for range maxDepth {
		var issuers []*x509.Certificate
		for _, ca := range t.cas[string(c.RawIssuer)] {
			if len(c.AuthorityKeyId) == 0 || len(ca.SubjectKeyId) == 0 || string(c.AuthorityKeyId) == string(ca.SubjectKeyId) {
				issuers = append(issuers, ca)
			}
		}
		if len(issuers) == 0 {
			return nil
		}
		good := slices.IndexFunc(issuers, func(ca *x509.Certificate) bool { _, revoked := t.revoked(ca); return !revoked })
		if good < 0 {
			return issuers[0]
		}
		c = issuers[good]
		if string(c.RawIssuer) == string(c.RawSubject) {
			return nil
		}
	}
	return nil
}

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
