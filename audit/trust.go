package audit

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
)

// maxDepth bounds the way up from a certificate to its root.
const maxDepth = 10

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
		if !roots[l.Issuer] {
			continue
		}
		list, err := ca.RecordedList(ctx, w.DB, l.Issuer, l.Shard)
		if err != nil {
			return nil, err
		}
		if list != nil {
			t.add(list)
		}
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
