package rest

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/provision"
)

// profiles serves profiles of certificates.
type profiles struct {
	ca          *ca.CA
	provisioner *provision.Provisioner
}

func (p *profiles) list(ctx context.Context, in *api.Paging) (api.Page[api.Profile], error) {
	list, err := ca.Profiles(ctx, p.ca.DB)
	return cutPage(each(list, shapeProfile), *in, func(p api.Profile) string { return p.Name }), err
}

func (p *profiles) get(ctx context.Context, in *Named) (api.Profile, error) {
	return as(shapeProfile)(ca.ReadProfile(ctx, p.ca.DB, in.Name))
}

func (p *profiles) put(ctx context.Context, in *struct {
	Named
	Body api.Profile
},
) (api.Profile, error) {
	if in.Body.Name != in.Name {
		return api.Profile{}, countersign.Errorf(countersign.BadRequest, "the path names %q, the body %.80q", in.Name, in.Body.Name).
			WithNext("write the same name in both")
	}
	if err := p.provisioner.SaveProfile(ctx, profileOf(in.Body), byOf(ctx)); err != nil {
		return api.Profile{}, err
	}
	return p.get(ctx, &in.Named)
}
