package audit

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/weakkey"
)

const (
	// lifeShare of a certificate's life is left when it is said to end soon, where
	// that is less than the default: with certificates of 30 days, "within 30 days"
	// would be always. Devices renew when a third is left.
	lifeShare = 5
	// minRSA is the smallest modulus that may still be used (NIST SP 800-131A).
	minRSA = 2048
	// rowsAtOnce is how many serials are looked up by one query.
	rowsAtOnce = 200
	// cutTime is how long a session may outlive its certificate, while the news is on
	// its way.
	cutTime = time.Minute
)

// certRow is a device's certificate that still counts for something.
type certRow struct {
	ref                           countersign.CertRef
	device, fleet                 string
	deviceState                   countersign.DeviceState
	state                         countersign.CertState
	notBefore, notAfter, issuedAt time.Time
	der                           []byte
}

func certificates() table[certRow] {
	return table[certRow]{
		name:   "certificates",
		fields: `c.serial, c.issuer, c.device, d.fleet, d.state, c.state, c.not_before, c.not_after, c.issued_at, c.der`,
		from: `certificate c JOIN device d ON d.id = c.device
			WHERE %s AND c.state IN ('pending', 'active', 'superseded', 'held') AND d.state <> 'retired'`,
		key: []string{"c.serial", "c.issuer"}, start: []any{"", ""},
		scan: func(rows *sql.Rows, c *certRow) error {
			var from, to, issued int64
			err := rows.Scan(&c.ref.Serial, &c.ref.Issuer, &c.device, &c.fleet, &c.deviceState, &c.state, &from, &to, &issued, &c.der)
			c.notBefore, c.notAfter, c.issuedAt = store.Time(from), store.Time(to), store.Time(issued)
			return err
		},
		last: func(c *certRow) []any { return []any{string(c.ref.Serial), c.ref.Issuer} },
	}
}

// finding is one about the certificate.
func (c *certRow) finding(reason, format string, args ...any) *Finding {
	return &Finding{
		Reason: reason, Subject: "device:" + c.device, Device: c.device, Fleet: c.fleet, Cert: c.ref, Summary: fmt.Sprintf(format, args...),
		Evidence: map[string]string{"state": string(c.state), "not_after": stamp(c.notAfter), "issued_at": stamp(c.issuedAt)},
	}
}

// with adds to the evidence.
func (f *Finding) with(name, value string) *Finding {
	f.Evidence[name] = value
	return f
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// days says a length of time as people do.
func days(d time.Duration) string {
	if d = d.Abs(); d < 48*time.Hour {
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// lookAtCertificates reads all certificates of devices once.
func lookAtCertificates(ctx context.Context, w *work) error {
	trust, err := w.readTrust(ctx)
	if err != nil {
		return err
	}
	if w.wants(DeviceRevoked) {
		if err := w.lookAtOwnLists(ctx); err != nil {
			return err
		}
		if err := w.lookAtRevokedSessions(ctx); err != nil {
			return err
		}
	}
	if w.wants(DeviceKeyQuality) {
		if err := w.lookAtSharedKeys(ctx); err != nil {
			return err
		}
	}
	judges := map[string]func(*certRow, countersign.AuditRules, *x509.Certificate) *Finding{
		DeviceExpiring: func(c *certRow, r countersign.AuditRules, _ *x509.Certificate) *Finding {
			return judgeExpiring(c, r, w.now)
		},
		DeviceAge: func(c *certRow, r countersign.AuditRules, _ *x509.Certificate) *Finding { return judgeAge(c, r, w.now) },
		DeviceRevoked: func(c *certRow, _ countersign.AuditRules, cert *x509.Certificate) *Finding {
			return judgeRevoked(c, cert, trust, w.now)
		},
		IntermediateRevoked: func(c *certRow, _ countersign.AuditRules, cert *x509.Certificate) *Finding {
			return judgeIssuers(c, cert, trust, w.now)
		},
		DeviceKeyQuality: func(c *certRow, _ countersign.AuditRules, cert *x509.Certificate) *Finding {
			return judgeKey(c, cert, w.WeakKeys)
		},
	}
	return certificates().walk(ctx, w.DB, func(c *certRow) error {
		cert, err := x509.ParseCertificate(c.der)
		if err != nil {
			return fmt.Errorf("parse certificate %s: %w", c.ref, err)
		}
		for name, judge := range judges {
			if f := judge(c, w.fleets[c.fleet].Audit, cert); f != nil {
				w.report(name, *f)
			}
			w.looked(1, name)
		}
		return nil
	})
}

// threshold is the fleet's, else the default.
func threshold(set countersign.Span, def time.Duration) time.Duration {
	if set > 0 {
		return time.Duration(set)
	}
	return def
}

// endsSoon is how long before its end a certificate is said to end soon.
func endsSoon(set countersign.Span, from, to time.Time) time.Duration {
	return threshold(set, min(defaultExpiring, to.Sub(from)/lifeShare))
}

func judgeExpiring(c *certRow, r countersign.AuditRules, now time.Time) *Finding {
	left := c.notAfter.Sub(now)
	switch {
	case c.state != countersign.CertActive:
		return nil
	case left < 0:
		return c.finding("CERTIFICATE_PAST_EXPIRATION", "the certificate of %s ended %s ago", c.device, days(left))
	case left <= endsSoon(r.Expiring, c.notBefore, c.notAfter):
		return c.finding("CERTIFICATE_APPROACHING_EXPIRATION", "the certificate of %s ends in %s and was not renewed", c.device, days(left))
	}
	return nil
}

func judgeAge(c *certRow, r countersign.AuditRules, now time.Time) *Finding {
	age := now.Sub(c.issuedAt)
	if c.state != countersign.CertActive || age < threshold(r.MaxAge, defaultMaxAge) {
		return nil
	}
	return c.finding("CERTIFICATE_PAST_AGE_THRESHOLD", "the certificate of %s has been in use for %s", c.device, days(age))
}

// usable reports whether whoever shows the certificate may still come in.
func (c *certRow) usable(now time.Time) bool {
	return c.state != countersign.CertHeld && !now.After(c.notAfter)
}

func judgeRevoked(c *certRow, cert *x509.Certificate, t *trust, now time.Time) *Finding {
	if !c.usable(now) {
		return nil
	}
	why, revoked := t.revoked(cert)
	if !revoked {
		return nil
	}
	return c.finding("CERTIFICATE_REVOKED_BY_ISSUER", "the certificate of %s was revoked by its CA and still counts here", c.device).
		with("revocation_reason", why.reason.String()).with("revoked_at", stamp(why.at))
}

func judgeIssuers(c *certRow, cert *x509.Certificate, t *trust, now time.Time) *Finding {
	if !c.usable(now) {
		return nil
	}
	ca := t.revokedAbove(cert)
	if ca == nil {
		return nil
	}
	return c.finding("INTERMEDIATE_CA_REVOKED_BY_ISSUER", "the certificate of %s was issued below %s, which was revoked", c.device, ca.Subject).
		with("revoked_ca", ca.Subject.String()).with("revoked_ca_serial", string(countersign.SerialOf(ca.SerialNumber)))
}

func judgeKey(c *certRow, cert *x509.Certificate, listed *weakkey.Blocklist) *Finding {
	reason, why := keyFault(cert, listed)
	if reason == "" {
		return nil
	}
	return c.finding(reason, "the key of %s: %s", c.device, why)
}

// keyFault returns what is wrong with a certificate's key; empty if nothing is known.
func keyFault(cert *x509.Certificate, listed *weakkey.Blocklist) (reason, why string) {
	if err := listed.Check(cert.PublicKey); err != nil {
		why := countersign.Public(err).Message
		switch {
		case errors.Is(err, weakkey.ErrListed):
			return "CERTIFICATE_KEY_VULNERABILITY_CVE-2008-0166", why
		case errors.Is(err, weakkey.ErrROCA):
			return "CERTIFICATE_KEY_VULNERABILITY_CVE-2017-15361", why
		}
		return "CERTIFICATE_KEY_WEAK", why
	}
	if k, isRSA := cert.PublicKey.(*rsa.PublicKey); isRSA && k.N.BitLen() < minRSA {
		return "CERTIFICATE_KEY_TOO_SMALL", fmt.Sprintf("RSA of %d bits is less than %d", k.N.BitLen(), minRSA)
	}
	return "", ""
}

// lookAtSharedKeys reports the devices whose RSA keys share a prime with another's.
func (w *work) lookAtSharedKeys(ctx context.Context) error {
	if w.SharedKeys == nil {
		return nil
	}
	pairs, err := w.SharedKeys(ctx)
	if err != nil {
		return fmt.Errorf("compare the keys of devices: %w", err)
	}
	for _, pair := range pairs {
		for i, c := range pair {
			other := pair[1-i]
			w.report(DeviceKeyQuality, Finding{
				Reason: "CERTIFICATE_KEY_SHARES_PRIME", Subject: "device:" + c.Device, Device: c.Device, Fleet: c.Fleet, Cert: c.Ref(),
				Summary:  fmt.Sprintf("the key of %s shares a prime with that of %s: both can be computed", c.Device, other.Device),
				Evidence: map[string]string{"state": string(c.State), "not_after": stamp(c.NotAfter), "issued_at": stamp(c.IssuedAt), "other_device": other.Device, "other_certificate": other.Ref().String()},
			})
		}
	}
	return nil
}

// lookAtRevokedSessions compares the live sessions of this node with the record: the
// gateway cuts a session whose certificate is revoked, so one that is there is a fault.
func (w *work) lookAtRevokedSessions(ctx context.Context) error {
	if w.Sessions == nil {
		return nil
	}
	for batch := range slices.Chunk(w.Sessions(), rowsAtOnce) {
		by := map[countersign.CertRef]countersign.Session{}
		var args []any
		var marks []string
		for _, s := range batch {
			if s.Cert.IsZero() {
				continue
			}
			by[s.Cert] = s
			args = append(args, string(s.Cert.Serial))
			marks = append(marks, fmt.Sprintf("$%d", len(args)))
		}
		if len(args) == 0 {
			continue
		}
		args = append(args, store.Micros(w.now.Add(-cutTime)))
		t := table[certRow]{scan: func(rows *sql.Rows, c *certRow) error { return rows.Scan(&c.ref.Serial, &c.ref.Issuer) }}
		page, err := t.page(ctx, w.DB, fmt.Sprintf(`SELECT serial, issuer FROM certificate WHERE serial IN (%s) AND state = 'revoked' AND revoked_at < $%d`,
			strings.Join(marks, ", "), len(args)), args)
		if err != nil {
			return fmt.Errorf("look up certificates of sessions: %w", err)
		}
		w.looked(int64(len(batch)), DeviceRevoked)
		for _, c := range page {
			s, ok := by[c.ref]
			if !ok {
				continue
			}
			w.report(DeviceRevoked, Finding{
				Reason: "REVOKED_CERTIFICATE_IN_SESSION", Severity: countersign.SeverityCritical, Subject: "device:" + s.Device,
				Device: s.Device, Fleet: s.Fleet, Cert: c.ref, Summary: fmt.Sprintf("a session of %s rests on a revoked certificate", s.Device),
				Evidence: map[string]string{"session": s.ID, "remote": s.Remote.String(), "since": stamp(s.Since)},
			})
		}
	}
	return nil
}

// lookAtOwnLists compares the published lists with the record. The lists come from
// the record, so a certificate that is on one and counts all the same means that the
// record went back in time: a restored backup, or a hand in the database. A hold
// that was lifted a moment ago may still be listed, and is left out.
func (w *work) lookAtOwnLists(ctx context.Context) error {
	type shard struct {
		issuer string
		number int
	}
	var shards []shard
	err := table[shard]{
		name: "revocation lists", fields: "issuer, shard", from: "crl WHERE %s", key: []string{"issuer", "shard"}, start: []any{"", -1},
		scan: func(rows *sql.Rows, s *shard) error { return rows.Scan(&s.issuer, &s.number) },
		last: func(s *shard) []any { return []any{s.issuer, s.number} },
	}.walk(ctx, w.DB, func(s *shard) error { shards = append(shards, *s); return nil })
	if err != nil {
		return err
	}
	for _, s := range shards {
		var der []byte
		if err := w.DB.QueryRow(ctx, `SELECT der FROM crl WHERE issuer = $1 AND shard = $2`, s.issuer, s.number).Scan(&der); err != nil {
			return fmt.Errorf("read list %s/%d: %w", s.issuer, s.number, err)
		}
		if len(der) == 0 {
			continue
		}
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return fmt.Errorf("parse list %s/%d: %w", s.issuer, s.number, err)
		}
		if err := w.compareList(ctx, s.issuer, list); err != nil {
			return err
		}
	}
	return nil
}

func (w *work) compareList(ctx context.Context, issuer string, list *x509.RevocationList) error {
	for entries := list.RevokedCertificateEntries; len(entries) > 0; {
		n := min(rowsAtOnce, len(entries))
		batch := map[countersign.Serial]x509.RevocationListEntry{}
		args, marks := []any{issuer}, []string{}
		for _, e := range entries[:n] {
			if countersign.ReasonCode(e.ReasonCode) == countersign.CertificateHold {
				continue
			}
			serial := countersign.SerialOf(e.SerialNumber)
			batch[serial] = e
			args = append(args, string(serial))
			marks = append(marks, fmt.Sprintf("$%d", len(args)))
		}
		entries = entries[n:]
		if len(marks) == 0 {
			continue
		}
		t := certificates()
		page, err := t.page(ctx, w.DB, `SELECT `+t.fields+` FROM `+fmt.Sprintf(t.from, `c.issuer = $1 AND c.serial IN (`+strings.Join(marks, ", ")+`)`), args)
		if err != nil {
			return fmt.Errorf("look up revoked certificates: %w", err)
		}
		w.looked(int64(len(marks)), DeviceRevoked)
		for i := range page {
			if !page[i].usable(w.now) {
				continue
			}
			e := batch[page[i].ref.Serial]
			w.report(DeviceRevoked, *page[i].finding("CERTIFICATE_REVOKED_BY_ISSUER",
				"our own list says that the certificate of %s is revoked, the record says that it is %s: was a backup restored?", page[i].device, page[i].state).
				with("revocation_reason", countersign.ReasonCode(e.ReasonCode).String()).with("revoked_at", stamp(e.RevocationTime)))
		}
	}
	return nil
}
