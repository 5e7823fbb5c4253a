package access

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/store"
)

// Standing is whether a certificate on record is valid for a use now, and why not.
type Standing struct {
	Cert   countersign.CertRef
	Device string
	Fleet  string
	Code   countersign.Code // why it is not valid; empty if it is
	Reason string
	Next   string // what to do about it; may be empty
	// Path is the path of a manufacturer's certificate that is valid by CAs which are not
	// on record.
	Path []*x509.Certificate

	Budget countersign.Budget // of each client, by the fleet's rules
}

// Err returns the refusal as an error; nil if the certificate is valid.
func (s *Standing) Err() error {
	if s.Code == "" {
		return nil
	}
	return countersign.Errorf(s.Code, "%s", s.Reason).WithNext(s.Next)
}

// Standing returns whether the certificate that ref names is valid for a use now. It checks
// the state and validity of the certificate, its device, the authority that issued it and
// what the fleet accepts; for a manufacturer's certificate also that the fleet accepts that
// authority and that no CA of the path has revoked it. All code that decides by a
// certificate must use Standing or, for many at once, Recheck. presented are the
// certificates that the client sent, its own first; nil if they are not known. An error
// means that the record cannot be read.
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

// presentedRecord reads the record of the certificate that a client presented, of any
// issuer. The two are equal, octet for octet. So the issuer's signature is not checked
// again: it was verified before the certificate was recorded.
func (d *Decider) presentedRecord(ctx context.Context, cert *x509.Certificate) (record, error) {
	sum := sha256.Sum256(cert.Raw)
	return readRecord(ctx, d.DB, `c.serial = $1 AND c.fingerprint = $2`, string(countersign.SerialOf(cert.SerialNumber)), hex.EncodeToString(sum[:]))
}

// judge decides by the record whether a certificate is valid for a use. It returns the
// first reason in the order that helps the reader most: the device, the certificate, its
// authority, the fleet, the manufacturer.
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
	s.Next = enrollAgain
	switch {
	case use == Connecting && !Accepts(rules.Access, countersign.AccessCertificate):
		s.Code, s.Reason, s.Next = countersign.NotAllowed, fmt.Sprintf("fleet %s does not accept a %s", r.fleet, countersign.AccessCertificate), ""
	case r.authority.kind != countersign.RegisteredAuthority:
	case !slices.Contains(rules.Authorities, r.authority.id):
		s.Code, s.Reason = countersign.NotAllowed, fmt.Sprintf("fleet %s does not accept certificates of authority %s any more", r.fleet, r.authority.id)
	case !rules.Connect:
		s.Code, s.Reason = countersign.NotAllowed, fmt.Sprintf("fleet %s does not let devices use their manufacturer's certificate any more", r.fleet)
	default:
		err = d.checkPath(ctx, rd, r, presented, &s)
	}
	return s, err
}

// factoryPath returns the options for the validation of manufacturers' paths.
func factoryPath(now time.Time) attest.PathOptions {
	return attest.PathOptions{Now: now, AllowNoEKU: true}
}

// checkPath sets the code in s if the path of a manufacturer's certificate is not valid
// now. The path on record was valid once, so only its validity in time and its revocation
// are checked. If it is not valid, another path may be, with CAs that the client presents:
// checkPath then sets s.Path.
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
		refused = err // else the reason about the path on record says more
	}
	p := countersign.Public(refused)
	s.Code, s.Reason, s.Next = p.Code, p.Message, p.Next
	return nil
}

// pathOf returns the path on record, the certificate first.
func (d *Decider) pathOf(ctx context.Context, rd store.Reader, r *record, presented []*x509.Certificate) ([]*x509.Certificate, error) {
	var path []*x509.Certificate
	if len(presented) > 0 { // its first certificate is the one on record
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
