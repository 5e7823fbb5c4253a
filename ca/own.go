package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/url"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/store"
)

const (
	// ServerValidity of the authority's own TLS certificates. They are made anew at
	// each start and at two thirds of this.
	ServerValidity = 30 * 24 * time.Hour
	// ClaimValidity bounds a claim certificate where its credential has no end.
	ClaimValidity = 366 * 24 * time.Hour
)

// issueOwn plans, signs and records a certificate of the authority's own, which may sign:
// the extended key usage and the names are those of tbs, the rest is of the profile.
func (c *issuance) issueOwn(ctx context.Context, a *authority, p Profile, tbs *x509.Certificate, pub crypto.PublicKey) (*Issued, error) {
	var err error
	p.Backdate = Duration(defaultBackdate)
	if tbs.NotBefore, tbs.NotAfter, err = p.window(a, c.Now()); err != nil {
		return nil, err
	}
	tbs.KeyUsage = x509.KeyUsageDigitalSignature
	if !p.NoStatus {
		a.status.addTo(tbs)
	}
	for again := false; ; again = true {
		plan, err := c.plan(ctx, a, tbs, pub, countersign.Certificate{Profile: p.Name, State: countersign.CertActive})
		if err != nil {
			return nil, err
		}
		issued, err := c.Sign(plan)
		if err != nil {
			return nil, err
		}
		issued.UsedAt = issued.IssuedAt
		err = c.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return c.Record(ctx, tx, issued) })
		if again || !errors.Is(err, ErrBlockClosed) {
			return issued, err
		}
	}
}

// issueService issues a certificate that lives for ServerValidity, also on a full disk,
// and returns it with its chain without root.
func (c *issuance) issueService(ctx context.Context, issuer, profile string, tbs *x509.Certificate, pub crypto.PublicKey) (chain [][]byte, notAfter time.Time, err error) {
	a, err := c.authority(issuer)
	if err != nil {
		return nil, notAfter, err
	}
	issued, err := c.issueOwn(store.Emergency(ctx), a, Profile{Name: profile, Validity: Duration(ServerValidity)}, tbs, pub)
	if err != nil {
		return nil, notAfter, err
	}
	above, err := c.Chain(issuer)
	if err != nil {
		return nil, notAfter, err
	}
	return append([][]byte{issued.DER}, above[:len(above)-1]...), tbs.NotAfter, nil
}

// IssueServer issues a TLS server certificate of the authority itself for names
// (DNS names and addresses), records it, and returns leaf and chain without root.
func (c *issuance) IssueServer(ctx context.Context, issuer string, names []string, pub crypto.PublicKey) (chain [][]byte, notAfter time.Time, err error) {
	tbs := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tbs.IPAddresses = append(tbs.IPAddresses, ip)
		} else {
			tbs.DNSNames = append(tbs.DNSNames, n)
		}
	}
	if len(names) > 0 && len(names[0]) <= maxCommonName {
		tbs.Subject.CommonName = names[0]
	}
	return c.issueService(ctx, issuer, "server", tbs, pub)
}

// IssueIntroducer issues a certificate with which the authority signs introductions
// of devices to each other. Its one name is api.IntroducerURI, and it is good for no TLS.
func (c *issuance) IssueIntroducer(ctx context.Context, issuer string, pub crypto.PublicKey) (chain [][]byte, notAfter time.Time, err error) {
	name, err := url.Parse(api.IntroducerURI)
	if err != nil {
		return nil, notAfter, err
	}
	tbs := &x509.Certificate{Subject: pkix.Name{CommonName: "introducer"}, URIs: []*url.URL{name}}
	return c.issueService(ctx, issuer, "introducer", tbs, pub)
}

// IssueClaim signs a claim certificate, which enrolls and can do nothing else: it
// is on record without a device, so no gateway admits it.
func (c *issuance) IssueClaim(ctx context.Context, issuer, label string, until time.Time, pub any) (*Issued, error) {
	a, err := c.authority(issuer)
	if err != nil {
		return nil, err
	}
	name := "claim:" + label
	p := Profile{Name: "claim", Validity: Duration(max(until.Sub(c.Now()), minValidity))}
	return c.issueOwn(ctx, a, p, &x509.Certificate{
		Subject:     pkix.Name{CommonName: name[:min(len(name), maxCommonName)]},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, pub)
}
