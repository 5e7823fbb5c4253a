package rest

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/danielgtaylor/huma/v2"
)

// Serial names a certificate in a path and a query.
type Serial struct {
	Text   string `path:"serial" maxLength:"64" doc:"Serial number in hex, with or without colons."`
	Issuer string `query:"issuer" maxLength:"80" doc:"Issuer of the certificate. It is needed where several issuers gave one serial number."`
}

func (s *Server) routeCertificates(a huma.API) {
	const tag = "Certificates"
	route(s, a, get("/certificates", tag, "List certificates by serial"), s.listCertificates)
	route(s, a, get("/certificates/{serial}", tag, "Get a certificate"), s.getCertificate)
	route(s, a, act("/certificates/{serial}/revoke", tag, "Take one certificate away, for good, and cut the sessions that rest on it"), s.revokeCertificate)
	route(s, a, get("/authorities", tag, "List authorities"), s.listAuthorities)
	route(s, a, get("/authorities/{id}", tag, "Get an authority"), s.getAuthority)
	route(s, a, add("/authorities/code", tag, "Draw a code that an external CA signs over to be registered"), s.registrationCode)
	route(s, a, add("/authorities", tag, "Register the CA of a manufacturer").upTo(maxCABody), s.registerAuthority)
	route(s, a, put("/authorities/{id}/crls", tag, "Replace the revocation lists of a registered authority").upTo(maxCABody), s.putCRLs)
}

func (s *Server) listCertificates(ctx context.Context, in *struct {
	api.CertificateFilter
	api.Paging
},
) (api.Page[api.Certificate], error) {
	list, next, err := s.CA.Certificates(ctx, ca.Filter{
		Device: in.Device, State: countersign.CertState(in.State), ExpiresBefore: in.ExpiresBefore,
		After: certificateAfter(in.After), Limit: limitOf(in.Paging),
	})
	now, cursor := s.Now(), ""
	if !next.IsZero() {
		cursor = next.String()
	}
	return page(list, cursor, func(c countersign.Certificate) api.Certificate {
		c.DER = nil
		return shapeCertificate(&c, now)
	}), err
}

// certificateAfter reads a cursor: what listCertificates gave as next, or the serial of
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

func (s *Server) getCertificate(ctx context.Context, in *Serial) (api.Certificate, error) {
	c, err := s.certificate(ctx, in)
	return shapeCertificate(&c, s.Now()), err
}

// certificate finds the certificate that a request names: NotFound if there is none, and
// Conflict, with the candidates, where several issuers gave the serial number.
func (s *Server) certificate(ctx context.Context, in *Serial) (countersign.Certificate, error) {
	serial, err := countersign.ParseSerial(in.Text)
	if err != nil {
		return countersign.Certificate{}, err
	}
	if in.Issuer != "" {
		return s.CA.Certificate(ctx, s.CA.DB, countersign.CertRef{Issuer: in.Issuer, Serial: serial})
	}
	list, err := s.CA.BySerial(ctx, s.CA.DB, serial)
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

func (s *Server) revokeCertificate(ctx context.Context, in *struct {
	Serial
	Body api.Revoke
},
) (api.Cut, error) {
	c, err := s.certificate(ctx, &in.Serial)
	if err != nil {
		return api.Cut{}, err
	}
	return s.revokeThis(ctx, countersign.RevokeRequest{Cert: c.Ref()}, in.Body)
}

func (s *Server) listAuthorities(_ context.Context, in *api.Paging) (api.Page[api.Authority], error) {
	list := page(s.CA.Authorities(), "", shapeAuthority)
	return pageOf(list.Items, *in, authorityKey), nil
}

// authorityKey puts roots before what hangs on them.
func authorityKey(a api.Authority) string {
	if a.Parent == "" {
		return "0/" + a.ID
	}
	return "1/" + a.ID
}

func (s *Server) getAuthority(_ context.Context, in *struct {
	ID string `path:"id" maxLength:"63"`
},
) (api.Authority, error) {
	a, err := s.CA.Authority(in.ID)
	if err != nil {
		return api.Authority{}, err
	}
	return shapeAuthority(a), nil
}
