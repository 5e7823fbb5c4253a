package access

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/store"
)

// Use is what a certificate is used for.
type Use int

const (
	// Connecting is to open a session, to keep one, or to be given what a session may be
	// opened with, such as an access token.
	Connecting Use = iota
	// Renewing is to be given a successor. Whether a superseded or replaced certificate
	// may have one is for the rule of rotation to say.
	Renewing
	// Recovering is to be given a successor by a certificate that may have expired.
	Recovering
	// vouched is Connecting by a broker that has verified the certificate itself: which
	// kinds of credential the fleet accepts does not matter.
	vouched
)

func (u Use) connects() bool { return u == Connecting || u == vouched }

// anew is the way back of a device whose certificate is no good any more.
const anew = "enroll anew with a token made for the device"

// Standing reports whether a certificate on record is good for a use now.
type Standing struct {
	Cert   countersign.CertRef
	Device string
	Fleet  string
	Code   countersign.Code // why it is not; empty: it is
	Reason string
	Next   string // what to do about it; may be empty
	// Path of a manufacturer's certificate, where it is valid by CAs that are not on record.
	Path []*x509.Certificate

	Budget countersign.Budget // of each client, by the fleet's rules
}

// Err is the refusal; nil if the certificate is good.
func (s *Standing) Err() error {
	if s.Code == "" {
		return nil
	}
	return countersign.Errorf(s.Code, "%s", s.Reason).WithNext(s.Next)
}

// Standing answers whether the certificate that ref names is good for a use now: its own
// state and validity, its device, the authority that issued it, what the fleet accepts
// and, for a manufacturer's certificate, whether the fleet still takes it from that
// authority and no CA of its path has revoked it. All that acts on a certificate asks
// here or, for many at once, Recheck. presented are certificates that the client sent,
// the device's own first; they may be nil. An error says that the record cannot be read.
func (d *Decider) Standing(ctx context.Context, rd store.Reader, ref countersign.CertRef, use Use, presented []*x509.Certificate) (Standing, error) {
	rec, err := readRecord(ctx, rd, `c.serial = $1 AND c.issuer = $2`, string(ref.Serial), ref.Issuer)
	if errors.Is(err, sql.ErrNoRows) {
		return Standing{Cert: ref, Code: countersign.CertUnknown, Reason: "the certificate is not on record"}, nil
	}
	if err != nil {
		return Standing{Cert: ref}, fmt.Errorf("couldn't read the record of certificate %s: %w", ref, store.Wrap(err))
	}
	return d.judge(ctx, rd, &rec, use, presented)
}

// record is a certificate with its device, fleet and authority, as far as a judgment
// needs them.
type record struct {
	ref                  countersign.CertRef
	device, fleet        string
	state                countersign.CertState
	reason               countersign.ReasonCode
	replaced             bool
	notBefore, notAfter  time.Time
	acceptUntil, revoked time.Time
	issued               countersign.Position
	deviceState          countersign.DeviceState
	deviceReason         string
	deviceRevoked        countersign.Position // first of the log after the device last lost its identity
	tags                 string               // JSON
	rules                string               // of the fleet, JSON
	authority            authority
	path                 string // of a manufacturer's certificate: fingerprints of the CAs above it
	der                  []byte // of a manufacturer's certificate
}

// authority is the one that answers for a certificate.
type authority struct {
	id, state string
	kind      countersign.AuthorityKind
	version   int64
}

const (
	recordColumns = `c.issuer, c.serial, c.device, c.state, c.reason, c.replaced, c.not_before, c.not_after, c.accept_until, c.revoked_at, c.issued_pos,
		c.path, CASE WHEN a.kind = 'registered' THEN c.der END, d.fleet, d.state, d.reason, d.revoked_pos, d.tags, f.rules, a.id, a.kind, a.state, a.version`
	recordTables = `certificate c JOIN device d ON d.id = c.device JOIN fleet f ON f.name = d.fleet
		JOIN authority a ON a.id = CASE WHEN c.anchor = '' THEN c.issuer ELSE c.anchor END`
)

func scanRecord(row store.Row) (r record, err error) {
	var from, to, accept, revoked int64
	err = row.Scan(&r.ref.Issuer, &r.ref.Serial, &r.device, &r.state, &r.reason, &r.replaced, &from, &to, &accept, &revoked, &r.issued,
		&r.path, &r.der, &r.fleet, &r.deviceState, &r.deviceReason, &r.deviceRevoked, &r.tags, &r.rules,
		&r.authority.id, &r.authority.kind, &r.authority.state, &r.authority.version)
	r.notBefore, r.notAfter = store.Time(from), store.Time(to)
	r.acceptUntil, r.revoked = store.Time(accept), store.Time(revoked)
	return r, err
}

func readRecord(ctx context.Context, rd store.Reader, where string, args ...any) (record, error) {
	return scanRecord(rd.QueryRow(ctx, `SELECT `+recordColumns+` FROM `+recordTables+` WHERE `+where, args...))
}

// shown reads the record of the certificate that a client presented, of any issuer. It
// is, octet for octet, the one on record. That makes a check of the issuer's signature
// needless: it was verified before the certificate was recorded.
func (d *Decider) shown(ctx context.Context, cert *x509.Certificate) (record, error) {
	sum := sha256.Sum256(cert.Raw)
	return readRecord(ctx, d.DB, `c.serial = $1 AND c.fingerprint = $2`, string(countersign.SerialOf(cert.SerialNumber)), hex.EncodeToString(sum[:]))
}

// tagsOf reads the device's tags.
func (r *record) tagsOf() (tags map[string]string, err error) {
	if r.tags != "" {
		err = json.Unmarshal([]byte(r.tags), &tags)
	}
	return tags, err
}

// judge holds a certificate against the record, in the order in which the reasons matter
// to the one who reads them: the device, the certificate, its authority, the fleet, the
// manufacturer.
func (d *Decider) judge(ctx context.Context, rd store.Reader, r *record, use Use, presented []*x509.Certificate) (s Standing, err error) {
	s = Standing{Cert: r.ref, Device: r.device, Fleet: r.fleet}
	rules, err := d.rules.of(r.fleet, r.rules)
	if err != nil {
		return s, err
	}
	s.Budget = rules.Budget.WithDefaults()
	if s.Code, s.Reason, s.Next = r.refusal(d.Now(), use); s.Code != "" {
		if s.Code == countersign.CertExpired && rules.Recovery != nil {
			s.Next = "renew at the recovery listener, which the fleet has opened for expired devices"
		}
		return s, nil
	}
	s.Next = anew
	switch {
	case use == Connecting && !Accepts(rules.Access, countersign.AccessCertificate):
		s.Code, s.Reason, s.Next = countersign.NotAllowed, fmt.Sprintf("fleet %s does not accept a %s", r.fleet, countersign.AccessCertificate), ""
	case r.authority.kind != countersign.RegisteredAuthority:
	case !slices.Contains(rules.Authorities, r.authority.id):
		s.Code, s.Reason = countersign.NotAllowed, fmt.Sprintf("fleet %s takes no certificates of authority %s any more", r.fleet, r.authority.id)
	case !rules.Connect:
		s.Code, s.Reason = countersign.NotAllowed, fmt.Sprintf("fleet %s does not let devices use their manufacturer's certificate any more", r.fleet)
	default:
		return s, d.checkPath(ctx, rd, r, presented, &s)
	}
	return s, nil
}

// refusal reports why the certificate, its device or its authority is not good now.
func (r *record) refusal(now time.Time, use Use) (code countersign.Code, reason, next string) {
	switch {
	case r.deviceState == countersign.DeviceRetired:
		return countersign.DeviceGone, "the device is retired", "enroll under another id"
	case r.deviceState == countersign.DeviceSuspended:
		return countersign.DeviceOnHold, because("the device is suspended", r.deviceReason), "ask the operator why"
	case r.issued < r.deviceRevoked && !use.connects():
		return countersign.CertIsRevoked, "the identity that the certificate stands for has been revoked", anew
	case r.state == countersign.CertRevoked && (use.connects() || r.reason != countersign.Superseded):
		return countersign.CertIsRevoked, fmt.Sprintf("certificate revoked (%s) %s ago", r.reason, ago(now.Sub(r.revoked))), anew
	case r.state == countersign.CertHeld:
		return countersign.CertIsHeld, "the certificate is on hold", "ask the operator why"
	case r.deviceState != countersign.DeviceActive:
		return countersign.NotAllowed, fmt.Sprintf("the device is %s", r.deviceState), anew
	case r.authority.state != "active":
		return countersign.CertIsRevoked, fmt.Sprintf("the authority that issued the certificate is %s", r.authority.state), anew
	}
	return r.timeRefusal(now, use)
}

func (r *record) timeRefusal(now time.Time, use Use) (code countersign.Code, reason, next string) {
	switch {
	case now.After(r.notAfter) && use != Recovering && (use.connects() || !r.replaced):
		return countersign.CertExpired, fmt.Sprintf("certificate expired %s ago", ago(now.Sub(r.notAfter))),
			"revoke the device, then enroll it anew with a token made for it; or give its fleet a rule for recovery, and let it renew there"
	case now.Add(clockSkew).Before(r.notBefore):
		return countersign.CertNotYetValid, "certificate is not yet valid", "check the clock of the server and of the CA"
	case r.state == countersign.CertSuperseded && now.After(r.acceptUntil) && use.connects():
		return countersign.CertIsRevoked, fmt.Sprintf("certificate superseded, its overlap ended %s ago", ago(now.Sub(r.acceptUntil))), "use the certificate that followed it"
	}
	return "", "", ""
}

// factoryPath are the options by which manufacturers' paths are validated.
func factoryPath(now time.Time) attest.PathOptions {
	return attest.PathOptions{Now: now, AllowNoEKU: true}
}

// checkPath notes in s why the path of a manufacturer's certificate is not valid now. The
// path on record was valid once, so only its validity in time and its revocation are
// looked at. Where it does not hold, another one may, by CAs that the client presents: then
// that is noted.
func (d *Decider) checkPath(ctx context.Context, rd store.Reader, r *record, presented []*x509.Certificate, s *Standing) error {
	anchor, err := d.CA.Anchor(ctx, rd, r.authority.id, r.authority.version)
	if err != nil {
		return err
	}
	recorded, err := d.pathOf(ctx, rd, r, presented)
	if err != nil {
		return err
	}
	refused := attest.CheckAgain(recorded, anchor, factoryPath(d.Now()))
	if refused == nil {
		return nil
	}
	known := *anchor
	if len(recorded) > 2 {
		known.Intermediates = slices.Concat(anchor.Intermediates, recorded[1:len(recorded)-1])
	}
	if len(presented) == 0 {
		presented = recorded[:1]
	}
	path, err := attest.ValidatePath(presented, []attest.Anchor{known}, factoryPath(d.Now()))
	if err == nil {
		s.Path = path.Certificates
		return nil
	}
	if countersign.CodeOf(err) != countersign.CertUnknown || len(recorded) < 2 {
		refused = err // else the path on record says more
	}
	p := countersign.Public(refused)
	s.Code, s.Reason, s.Next = p.Code, p.Message, p.Next
	return nil
}

// pathOf returns the path on record, the certificate first.
func (d *Decider) pathOf(ctx context.Context, rd store.Reader, r *record, presented []*x509.Certificate) ([]*x509.Certificate, error) {
	var path []*x509.Certificate
	if len(presented) > 0 { // it is the one on record
		path = append(path, presented[0])
	} else {
		leaf, err := x509.ParseCertificate(r.der)
		if err != nil {
			return nil, fmt.Errorf("couldn't parse certificate %s on record: %w", r.ref, err)
		}
		path = append(path, leaf)
	}
	for print := range strings.FieldsSeq(r.path) {
		issuer, err := d.issuers.get(ctx, rd, print)
		if err != nil {
			return nil, err
		}
		path = append(path, issuer)
	}
	return path, nil
}

// maxIssuers bounds the certificates of CAs that are kept parsed, some KiB each. With more
// in use some are read at each judgment.
const maxIssuers = 512

// issuers keeps the certificates of CAs by fingerprint. What has a fingerprint never
// changes.
type issuers struct {
	mu sync.Mutex
	by map[string]*x509.Certificate
}

func (i *issuers) get(ctx context.Context, rd store.Reader, print string) (*x509.Certificate, error) {
	i.mu.Lock()
	known := i.by[print]
	i.mu.Unlock()
	if known != nil {
		return known, nil
	}
	var der []byte
	if err := rd.QueryRow(ctx, `SELECT der FROM issuer_certificate WHERE fingerprint = $1`, print).Scan(&der); err != nil {
		return nil, fmt.Errorf("couldn't read the certificate of a CA: %w", store.Wrap(err))
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse the certificate of a CA: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.by == nil || len(i.by) >= maxIssuers {
		i.by = map[string]*x509.Certificate{}
	}
	i.by[print] = cert
	return cert, nil
}

// ended is since when the certificate is refused with a code of refusal.
func (r *record) ended(code countersign.Code) time.Time {
	switch code {
	case countersign.CertExpired:
		return r.notAfter
	case countersign.DeviceGone, countersign.DeviceOnHold, countersign.CertIsHeld:
		return r.revoked
	case countersign.CertIsRevoked:
		if r.revoked.IsZero() {
			return r.acceptUntil
		}
		return r.revoked
	}
	return time.Time{}
}
