package rest

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/danielgtaylor/huma/v2"
)

// Serial is a path parameter.
type Serial struct {
	Text string `path:"serial" maxLength:"64" doc:"Serial number in hex, with or without colons."`
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
		After: countersign.Serial(in.After), Limit: limitOf(in.Paging),
	})
	now := s.Now()
	return page(list, string(next), func(c countersign.Certificate) api.Certificate {
		c.DER = nil
		return shapeCertificate(&c, now)
	}), err
}

func (s *Server) getCertificate(ctx context.Context, in *Serial) (api.Certificate, error) {
	c, err := s.certificate(ctx, in.Text)
	return shapeCertificate(&c, s.Now()), err
}

// certificate finds the certificate that a path names. One that is not on record
// is not found here, however grave it is where a device shows it.
func (s *Server) certificate(ctx context.Context, text string) (countersign.Certificate, error) {
	serial, err := countersign.ParseSerial(text)
	if err != nil {
		return countersign.Certificate{}, err
	}
	c, err := s.CA.Certificate(ctx, s.CA.DB, serial)
	if countersign.CodeOf(err) == countersign.CertUnknown {
		err = countersign.Errorf(countersign.NotFound, "there is no certificate %s", serial).WithNext("list them with: countersign cert list")
	}
	return c, err
}

func (s *Server) revokeCertificate(ctx context.Context, in *struct {
	Serial
	Body api.Revoke
},
) (api.Cut, error) {
	c, err := s.certificate(ctx, in.Text)
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
