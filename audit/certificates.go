package audit

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/registry"
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
	// cutTime is how long a session may outlive its certificate, while the notice is on
	// its way.
	cutTime = time.Minute
	// entriesAtOnce bounds the entries of a list that are compared at once.
	entriesAtOnce = store.MaxPage
)

// certificate is a certificate on record with its device, and parsed.
type certificate struct {
	countersign.Certificate
	device countersign.Device // zero where it is not on record
	x509   *x509.Certificate
}

// certificates reads all certificates of devices that are not revoked, in the order of
// their public keys.
func (w *work) certificates(ctx context.Context) iter.Seq2[certificate, error] {
	return store.Pages(func(after ca.KeyRef) (page []certificate, next ca.KeyRef, err error) {
		certs, next, err := ca.ByKey(ctx, w.DB, after)
		if err == nil {
			page, err = w.withDevices(ctx, certs)
		}
		return page, next, err
	})
}

// withDevices adds the devices of certificates to them.
func (w *work) withDevices(ctx context.Context, certs []countersign.Certificate) ([]certificate, error) {
	ids := make([]string, len(certs))
	for i := range certs {
		ids[i] = certs[i].Device
	}
	devices, err := registry.DevicesByID(ctx, w.DB, ids)
	if err != nil {
		return nil, err
	}
	list := make([]certificate, len(certs))
	for i, c := range certs {
		list[i] = certificate{Certificate: c, device: devices[c.Device]}
	}
	return list, nil
}

// current reports whether the certificate is one of a device that is not retired.
func (c *certificate) current() bool {
	return c.device.ID != "" && c.device.State != countersign.DeviceRetired
}

// finding is one about the certificate.
func (c *certificate) finding(reason, format string, args ...any) *Finding {
	return &Finding{
		Reason: reason, Subject: "device:" + c.Device, Device: c.Device, Fleet: c.device.Fleet, Cert: c.Ref(), Summary: fmt.Sprintf(format, args...),
		Evidence: map[string]string{"state": string(c.State), "not_after": stamp(c.NotAfter), "issued_at": stamp(c.IssuedAt)},
	}
}

// with adds to the evidence.
func (f *Finding) with(name, value string) *Finding {
	f.Evidence[name] = value
	return f
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// days is a length of time in words.
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
		if err := errors.Join(w.lookAtOwnLists(ctx), w.lookAtRevokedSessions(ctx)); err != nil {
			return err
		}
	}
	if w.wants(DeviceKeyQuality) {
		if err := w.lookAtSharedKeys(ctx); err != nil {
			return err
		}
	}
	var before certificate
	reported := "" // the last key
	for c, err := range w.certificates(ctx) {
		if err != nil {
			return err
		}
		w.looked(1, KeyReused)
		if c.KeyHash != "" && c.KeyHash == before.KeyHash && c.Device != before.Device && reported != c.KeyHash {
			reported = c.KeyHash
			w.report(KeyReused, keyReused(&before, &c))
		}
		before = c
		if !c.current() {
			continue
		}
		if c.x509, err = x509.ParseCertificate(c.DER); err != nil {
			return fmt.Errorf("parse certificate %s: %w", c.Ref(), err)
		}
		rules := w.fleets[c.device.Fleet].Audit
		w.looked(1, DeviceExpiring, DeviceAge, DeviceRevoked, IntermediateRevoked, DeviceKeyQuality)
		w.found(DeviceExpiring, judgeExpiring(&c, rules, w.now))
		w.found(DeviceAge, judgeAge(&c, rules, w.now))
		w.found(DeviceRevoked, judgeRevoked(&c, trust, w.now))
		w.found(IntermediateRevoked, judgeIssuers(&c, trust, w.now))
		w.found(DeviceKeyQuality, judgeKey(&c, w.WeakKeys))
	}
	return nil
}

func keyReused(before, c *certificate) Finding {
	return Finding{
		Reason: "PUBLIC_KEY_SHARED_BY_MULTIPLE_DEVICES", Subject: "device:" + c.Device, Device: c.Device, Fleet: c.Fleet, Cert: c.Ref(),
		Summary:  fmt.Sprintf("%s and %s have certificates over one public key", before.Device, c.Device),
		Evidence: map[string]string{"key_sha256": c.KeyHash, "other_device": before.Device, "other_certificate": before.Ref().String()},
	}
}

// threshold is the fleet's, else the default.
func threshold(set countersign.Span, def time.Duration) time.Duration {
	if set > 0 {
		return time.Duration(set)
	}
	return def
}

// endsSoon is how long before its end a certificate is reported to end soon.
func endsSoon(set countersign.Span, from, to time.Time) time.Duration {
	return threshold(set, min(defaultExpiring, to.Sub(from)/lifeShare))
}

func judgeExpiring(c *certificate, r countersign.AuditRules, now time.Time) *Finding {
	left := c.NotAfter.Sub(now)
	switch {
	case c.State != countersign.CertActive:
		return nil
	case left < 0:
		return c.finding("CERTIFICATE_PAST_EXPIRATION", "the certificate of %s ended %s ago", c.Device, days(left))
	case left <= endsSoon(r.Expiring, c.NotBefore, c.NotAfter):
		return c.finding("CERTIFICATE_APPROACHING_EXPIRATION", "the certificate of %s ends in %s and was not renewed", c.Device, days(left))
	}
	return nil
}

func judgeAge(c *certificate, r countersign.AuditRules, now time.Time) *Finding {
	age := now.Sub(c.IssuedAt)
	if c.State != countersign.CertActive || age < threshold(r.MaxAge, defaultMaxAge) {
		return nil
	}
	return c.finding("CERTIFICATE_PAST_AGE_THRESHOLD", "the certificate of %s has been in use for %s", c.Device, days(age))
}

// usable reports whether a client may still connect with the certificate.
func (c *certificate) usable(now time.Time) bool {
	return c.State != countersign.CertHeld && !now.After(c.NotAfter)
}

func judgeRevoked(c *certificate, t *trust, now time.Time) *Finding {
	if !c.usable(now) {
		return nil
	}
	why, revoked := t.revoked(c.x509)
	if !revoked {
		return nil
	}
	return c.finding("CERTIFICATE_REVOKED_BY_ISSUER", "the certificate of %s was revoked by its CA and still counts here", c.Device).
		with("revocation_reason", why.reason.String()).with("revoked_at", stamp(why.at))
}

func judgeIssuers(c *certificate, t *trust, now time.Time) *Finding {
	if !c.usable(now) {
		return nil
	}
	above := t.revokedAbove(c.x509)
	if above == nil {
		return nil
	}
	return c.finding("INTERMEDIATE_CA_REVOKED_BY_ISSUER", "the certificate of %s was issued below %s, which was revoked", c.Device, above.Subject).
		with("revoked_ca", above.Subject.String()).with("revoked_ca_serial", string(countersign.SerialOf(above.SerialNumber)))
}

func judgeKey(c *certificate, listed *weakkey.Blocklist) *Finding {
	reason, why := keyFault(c.x509, listed)
	if reason == "" {
		return nil
	}
	return c.finding(reason, "the key of %s: %s", c.Device, why)
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
	by := map[countersign.CertRef]countersign.Session{}
	for _, s := range w.Sessions() {
		if !s.Cert.IsZero() {
			by[s.Cert] = s
		}
	}
	list, err := ca.ByRef(ctx, w.DB, slices.Collect(maps.Keys(by)))
	if err != nil {
		return err
	}
	w.looked(int64(len(by)), DeviceRevoked)
	for i := range list {
		c := &list[i]
		if c.State != countersign.CertRevoked || w.now.Sub(c.RevokedAt) <= cutTime {
			continue
		}
		s := by[c.Ref()]
		w.report(DeviceRevoked, Finding{
			Reason: "REVOKED_CERTIFICATE_IN_SESSION", Severity: countersign.SeverityCritical, Subject: "device:" + s.Device,
			Device: s.Device, Fleet: s.Fleet, Cert: s.Cert, Summary: fmt.Sprintf("a session of %s rests on a revoked certificate", s.Device),
			Evidence: map[string]string{"session": s.ID, "remote": s.Remote.String(), "since": stamp(s.Since)},
		})
	}
	return nil
}

// lookAtOwnLists compares the published lists with the record. The lists come from
// the record, so a certificate that is on one and counts all the same means that the
// record went back in time: a restored backup, or a hand in the database. A hold
// that was lifted a moment ago may still be listed, and is left out.
func (w *work) lookAtOwnLists(ctx context.Context) error {
	records, err := ca.ListRecords(ctx, w.DB)
	if err != nil {
		return err
	}
	for _, l := range records {
		list, err := ca.RecordedList(ctx, w.DB, l.Issuer, l.Shard)
		if err != nil {
			return err
		}
		if list == nil {
			continue
		}
		for entries := range slices.Chunk(list.RevokedCertificateEntries, entriesAtOnce) {
			if err := w.compareEntries(ctx, l.Issuer, entries); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *work) compareEntries(ctx context.Context, issuer string, entries []x509.RevocationListEntry) error {
	listed := map[countersign.CertRef]x509.RevocationListEntry{}
	for _, e := range entries {
		if countersign.ReasonCode(e.ReasonCode) != countersign.CertificateHold {
			listed[countersign.CertRef{Issuer: issuer, Serial: countersign.SerialOf(e.SerialNumber)}] = e
		}
	}
	certs, err := ca.ByRef(ctx, w.DB, slices.Collect(maps.Keys(listed)))
	if err != nil {
		return err
	}
	certs = slices.DeleteFunc(certs, func(c countersign.Certificate) bool { return c.State == countersign.CertRevoked })
	list, err := w.withDevices(ctx, certs)
	if err != nil {
		return err
	}
	w.looked(int64(len(listed)), DeviceRevoked)
	for i := range list {
		c := &list[i]
		if !c.current() || !c.usable(w.now) {
			continue
		}
		e := listed[c.Ref()]
		w.found(DeviceRevoked, c.finding("CERTIFICATE_REVOKED_BY_ISSUER",
			"our own list says that the certificate of %s is revoked, the record says that it is %s: was a backup restored?", c.Device, c.State).
			with("revocation_reason", countersign.ReasonCode(e.ReasonCode).String()).with("revoked_at", stamp(e.RevocationTime)))
	}
	return nil
}
