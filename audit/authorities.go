package audit

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// maxDepth bounds the way up from a certificate to its root.
	maxDepth = 10
	// founding is how long the first list of an authority may take.
	founding = time.Hour
)

// oidCertificateIssuer marks the entries of indirect lists (RFC 5280, 5.3.3).
var oidCertificateIssuer = asn1.ObjectIdentifier{2, 5, 29, 29}

// authority is a CA on record.
type authority struct {
	id, state  string
	kind       countersign.AuthorityKind
	cert       *x509.Certificate
	below      []*x509.Certificate // its known intermediates
	lists      []*x509.RevocationList
	requireCRL bool
}

// trust is what is known of CAs and of what they revoked.
type trust struct {
	authorities []authority
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
	err := authorities().walk(ctx, w.DB, func(r *authorityRow) error {
		a, err := r.parse()
		if err != nil {
			return fmt.Errorf("read authority %s: %w", r.id, err)
		}
		t.authorities = append(t.authorities, a)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var lists []*x509.RevocationList
	for i := range t.authorities {
		a := &t.authorities[i]
		for _, c := range append([]*x509.Certificate{a.cert}, a.below...) {
			t.cas[string(c.RawSubject)] = append(t.cas[string(c.RawSubject)], c)
		}
		if a.kind == countersign.RootAuthority {
			if a.lists, err = w.rootLists(ctx, a.id); err != nil {
				return nil, err
			}
		}
		lists = append(lists, a.lists...)
	}
	for _, l := range lists {
		t.add(l)
	}
	return t, nil
}

// authorityRow is an authority as it is on record.
type authorityRow struct {
	id, kind, state, trust string
	der                    []byte
}

func authorities() table[authorityRow] {
	return table[authorityRow]{
		name: "authorities", fields: `id, kind, state, certificate, trust`, from: `authority WHERE %s`, key: []string{"id"}, start: []any{""},
		scan: func(rows *sql.Rows, r *authorityRow) error {
			return rows.Scan(&r.id, &r.kind, &r.state, &r.der, &r.trust)
		},
		last: func(r *authorityRow) []any { return []any{r.id} },
	}
}

func (r *authorityRow) parse() (a authority, err error) {
	// As package ca writes it.
	var t struct {
		Intermediates [][]byte `json:"intermediates"`
		CRLs          [][]byte `json:"crls"`
		RequireCRL    bool     `json:"require_crl"`
	}
	if err := json.Unmarshal([]byte(r.trust), &t); err != nil {
		return a, fmt.Errorf("decode its trust: %w", err)
	}
	a = authority{id: r.id, kind: countersign.AuthorityKind(r.kind), state: r.state, requireCRL: t.RequireCRL}
	if a.cert, err = x509.ParseCertificate(r.der); err != nil {
		return a, fmt.Errorf("parse its certificate: %w", err)
	}
	for _, der := range t.Intermediates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return a, fmt.Errorf("parse an intermediate: %w", err)
		}
		a.below = append(a.below, c)
	}
	for _, der := range t.CRLs {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			return a, fmt.Errorf("parse a list: %w", err)
		}
		a.lists = append(a.lists, l)
	}
	return a, nil
}

func (w *work) rootLists(ctx context.Context, id string) (lists []*x509.RevocationList, err error) {
	t := table[[]byte]{
		scan: func(rows *sql.Rows, der *[]byte) error { return rows.Scan(der) },
	}
	page, err := t.page(ctx, w.DB, `SELECT der FROM crl WHERE issuer = $1 AND published > 0 ORDER BY shard`, []any{id})
	if err != nil {
		return nil, fmt.Errorf("read the lists of %s: %w", id, err)
	}
	for _, der := range page {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("parse a list of %s: %w", id, err)
		}
		lists = append(lists, l)
	}
	return lists, nil
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

// revoked says whether its issuer revoked the certificate.
func (t *trust) revoked(c *x509.Certificate) (revocation, bool) {
	r, ok := t.entries[string(c.RawIssuer)][string(c.SerialNumber.Bytes())]
	return r, ok
}

// revokedAbove gives a CA above the certificate that was revoked; nil if none was.
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
	expiring, err := w.expiringByIssuer(ctx)
	if err != nil {
		return err
	}
	for i := range t.authorities {
		a := &t.authorities[i]
		if a.state != "active" {
			continue
		}
		w.looked(1+int64(len(a.below)), CAExpiring, CARevoked, CAKeyQuality)
		for _, c := range append([]*x509.Certificate{a.cert}, a.below...) {
			for name, f := range map[string]*Finding{
				CAExpiring: judgeCAExpiring(a, c, expiring[a.id], w.now), CARevoked: judgeCARevoked(a, c, t), CAKeyQuality: w.judgeCAKey(a, c),
			} {
				if f != nil {
					w.report(name, *f)
				}
			}
		}
		for _, l := range a.lists {
			if f := judgeForeignList(a, l, w.now); f != nil {
				w.report(CRLStale, *f)
			}
		}
		w.looked(int64(len(a.lists)), CRLStale)
	}
	return w.lookAtLists(ctx)
}

// expiringByIssuer is the longest warning that a fleet of each authority wants.
func (w *work) expiringByIssuer(ctx context.Context) (map[string]countersign.Span, error) {
	type fleet struct{ name, issuer string }
	longest := map[string]countersign.Span{}
	err := table[fleet]{
		name: "fleets", fields: "name, issuer", from: "fleet WHERE %s", key: []string{"name"}, start: []any{""},
		scan: func(rows *sql.Rows, f *fleet) error { return rows.Scan(&f.name, &f.issuer) },
		last: func(f *fleet) []any { return []any{f.name} },
	}.walk(ctx, w.DB, func(f *fleet) error {
		longest[f.issuer] = max(longest[f.issuer], w.fleets[f.name].Audit.Expiring)
		return nil
	})
	return longest, err
}

func (a *authority) finding(c *x509.Certificate, reason, format string, args ...any) *Finding {
	return &Finding{
		Reason: reason, Subject: "authority:" + a.id, Cert: countersign.CertRef{Issuer: a.id, Serial: countersign.SerialOf(c.SerialNumber)},
		Summary:  fmt.Sprintf(format, args...),
		Evidence: map[string]string{"kind": string(a.kind), "subject": c.Subject.String(), "not_after": stamp(c.NotAfter)},
	}
}

func judgeCAExpiring(a *authority, c *x509.Certificate, set countersign.Span, now time.Time) *Finding {
	left := c.NotAfter.Sub(now)
	switch {
	case left < 0:
		return a.finding(c, "CERTIFICATE_PAST_EXPIRATION", "the certificate of %s at authority %s ended %s ago", c.Subject, a.id, days(left))
	case left <= endsSoon(set, c.NotBefore, c.NotAfter):
		return a.finding(c, "CERTIFICATE_APPROACHING_EXPIRATION", "the certificate of %s at authority %s ends in %s", c.Subject, a.id, days(left))
	}
	return nil
}

func judgeCARevoked(a *authority, c *x509.Certificate, t *trust) *Finding {
	why, revoked := t.revoked(c)
	if !revoked {
		return nil
	}
	return a.finding(c, "CERTIFICATE_REVOKED_BY_ISSUER", "%s at authority %s was revoked by its issuer and is still trusted here", c.Subject, a.id).
		with("revocation_reason", why.reason.String()).with("revoked_at", stamp(why.at))
}

func (w *work) judgeCAKey(a *authority, c *x509.Certificate) *Finding {
	reason, why := keyFault(c, w.WeakKeys)
	if reason == "" {
		return nil
	}
	return a.finding(c, reason, "the key of %s at authority %s: %s", c.Subject, a.id, why)
}

// judgeForeignList looks at a list that an operator loaded for an external CA.
func judgeForeignList(a *authority, l *x509.RevocationList, now time.Time) *Finding {
	if a.kind != countersign.RegisteredAuthority || l.NextUpdate.IsZero() || !now.After(l.NextUpdate) {
		return nil
	}
	f := a.finding(a.cert, "CRL_PAST_NEXT_UPDATE", "the list of %s at authority %s ended %s ago", l.Issuer, a.id, days(now.Sub(l.NextUpdate)))
	if !a.requireCRL {
		f.Severity = countersign.SeverityMedium // its devices are not refused for it
	}
	return f.with("next_update", stamp(l.NextUpdate))
}

// listRow is a list that we publish.
type listRow struct {
	issuer                          string
	shard                           int
	published                       int64
	created, thisUpdate, nextUpdate time.Time
}

// lookAtLists looks at the lists that we publish.
func (w *work) lookAtLists(ctx context.Context) error {
	return table[listRow]{
		name:   "revocation lists",
		fields: `l.issuer, l.shard, l.published, a.created_at, l.this_update, l.next_update`,
		from:   `crl l JOIN authority a ON a.id = l.issuer WHERE %s AND a.state = 'active'`,
		key:    []string{"l.issuer", "l.shard"}, start: []any{"", -1},
		scan: func(rows *sql.Rows, l *listRow) error {
			var created, this, next int64
			err := rows.Scan(&l.issuer, &l.shard, &l.published, &created, &this, &next)
			l.created, l.thisUpdate, l.nextUpdate = store.Time(created), store.Time(this), store.Time(next)
			return err
		},
		last: func(l *listRow) []any { return []any{l.issuer, l.shard} },
	}.walk(ctx, w.DB, func(l *listRow) error {
		if f := judgeList(l, w.now); f != nil {
			w.report(CRLStale, *f)
		}
		w.looked(1, CRLStale)
		return nil
	})
}

// judgeList looks at a list of ours: a new one is due at half of its life.
func judgeList(l *listRow, now time.Time) *Finding {
	f := &Finding{Subject: "authority:" + l.issuer, Evidence: map[string]string{"shard": fmt.Sprint(l.shard)}}
	switch {
	case l.published == 0 && now.Sub(l.created) > founding:
		f.Reason, f.Summary = "CRL_NEVER_PUBLISHED", fmt.Sprintf("authority %s never published a revocation list", l.issuer)
		return f
	case l.published == 0:
		return nil
	case now.After(l.nextUpdate):
		f.Reason, f.Summary = "CRL_PAST_NEXT_UPDATE", fmt.Sprintf("the revocation list of %s ended %s ago: relying parties refuse its devices", l.issuer, days(now.Sub(l.nextUpdate)))
	case now.Sub(l.thisUpdate) > l.nextUpdate.Sub(l.thisUpdate)*3/4:
		f.Reason, f.Summary = "CRL_PUBLICATION_LATE", fmt.Sprintf("the revocation list of %s should have been followed by a new one", l.issuer)
		f.Severity = countersign.SeverityMedium
	default:
		return nil
	}
	return f.with("this_update", stamp(l.thisUpdate)).with("next_update", stamp(l.nextUpdate))
}
