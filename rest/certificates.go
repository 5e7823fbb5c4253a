package rest

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/ra"
)

// Serial names a certificate in a path and a query.
type Serial struct {
	Text   string `path:"serial" maxLength:"64" doc:"Serial number in hex, with or without colons."`
	Issuer string `query:"issuer" maxLength:"80" doc:"Issuer of the certificate. It is needed where several issuers gave one serial number."`
}

// certificates serves issued certificates.
type certificates struct {
	ca  *ca.CA
	ra  *ra.Authority
	now func() time.Time
}

func (c *certificates) list(ctx context.Context, in *struct {
	api.CertificateFilter
	api.Paging
},
) (api.Page[api.Certificate], error) {
	list, next, err := ca.Certificates(ctx, c.ca.DB, ca.Filter{
		Device: in.Device, State: countersign.CertState(in.State), ExpiresBefore: in.ExpiresBefore,
		After: certificateAfter(in.After), Limit: limitOf(in.Paging),
	})
	now, cursor := c.now(), ""
	if !next.IsZero() {
		cursor = next.String()
	}
	return api.Page[api.Certificate]{Items: each(list, func(one countersign.Certificate) api.Certificate {
		one.DER = nil
		return shapeCertificate(&one, now)
	}), Next: cursor}, err
}

// certificateAfter reads a cursor: the next of a page, or the serial of
// the last certificate of a page.
func certificateAfter(text string) countersign.CertRef {
	ref, err := countersign.ParseCertRef(text)
	if err != nil {
		return countersign.CertRef{Serial: countersign.Serial(text), Issuer: afterAllIssuers}
	}
	return ref
}

// afterAllIssuers sorts behind the name of every issuer.
const afterAllIssuers = "~"

func (c *certificates) get(ctx context.Context, in *Serial) (api.Certificate, error) {
	found, err := c.find(ctx, in)
	return shapeCertificate(&found, c.now()), err
}

// find returns the certificate that a request names: NotFound if there is none, and
// Conflict, with the candidates, where several issuers gave the serial number.
func (c *certificates) find(ctx context.Context, in *Serial) (countersign.Certificate, error) {
	serial, err := countersign.ParseSerial(in.Text)
	if err != nil {
		return countersign.Certificate{}, err
	}
	if in.Issuer != "" {
		return ca.Certificate(ctx, c.ca.DB, countersign.CertRef{Issuer: in.Issuer, Serial: serial})
	}
	list, err := ca.BySerial(ctx, c.ca.DB, serial)
	if err != nil {
		return countersign.Certificate{}, err
	}
	if len(list) == 1 {
		return list[0], nil
	}
	names := make([]string, 0, len(list))
	for i := range list {
		names = append(names, fmt.Sprintf("%s (%s)", list[i].Issuer, cmp.Or(list[i].Device, list[i].Profile)))
	}
	return countersign.Certificate{}, countersign.Errorf(countersign.Conflict, "%d certificates have serial %s, of the issuers %s", len(list), serial, strings.Join(names, ", ")).
		WithNext("name the issuer too: " + list[0].Ref().String())
}

func (c *certificates) revoke(ctx context.Context, in *struct {
	Serial
	Body api.Revoke
},
) (api.Cut, error) {
	found, err := c.find(ctx, &in.Serial)
	if err != nil {
		return api.Cut{}, err
	}
	return revoke(ctx, c.ra, countersign.RevokeRequest{Cert: found.Ref()}, in.Body)
}

// revoke revokes what req names, for the reason in body.
func revoke(ctx context.Context, a *ra.Authority, req countersign.RevokeRequest, body api.Revoke) (api.Cut, error) {
	reason, err := countersign.ParseReasonCode(body.Reason)
	if err != nil {
		return api.Cut{}, err
	}
	by := byOf(ctx)
	req.Reason, req.Note, req.Actor, req.Via = reason, body.Note, by.Actor, by.Via
	r, err := a.Revoke(ctx, req)
	if err == nil {
		reason = r.Reason
	}
	return cutOf(ctx, a.CA, r, reason), err
}

// cutOf shapes what an act took away; r is nil where it failed.
func cutOf(ctx context.Context, c *ca.CA, r *countersign.Revocation, reason countersign.ReasonCode) api.Cut {
	if r == nil {
		return api.Cut{}
	}
	out := api.Cut{
		Device: r.Device, Reason: reason.String(), Certificates: []api.CertRef{}, At: r.At.UTC(),
		Already: r.Already, Raised: r.Raised, Sessions: r.Sessions, CutMicros: r.CutIn.Microseconds(),
	}
	seen := map[string]bool{}
	for _, ref := range r.Certificates {
		out.Certificates = append(out.Certificates, api.CertRef{Issuer: ref.Issuer, Serial: string(ref.Serial)})
		if r.CRLNumber == 0 || seen[ref.Issuer] {
			continue
		}
		seen[ref.Issuer] = true
		if l, err := c.CRLRecord(ctx, ref.Issuer, 0); err == nil { // the act is done: a list that cannot be read is no failure of it
			out.CRLs = append(out.CRLs, api.CRLRef{Issuer: l.Issuer, Shard: l.Shard, Number: l.Number})
		}
	}
	return out
}
