package rest

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/operator"
	"github.com/danielgtaylor/huma/v2"
)

// Named is a path parameter.
type Named struct {
	Name string `path:"name" maxLength:"63"`
}

func (s *Server) routeSetup(a huma.API) {
	const tag = "Setup"
	route(s, a, get("/fleets", tag, "List fleets by name"), s.listFleets)
	route(s, a, get("/fleets/{name}", tag, "Get a fleet"), s.getFleet)
	route(s, a, put("/fleets/{name}", tag, "Create or change a fleet"), s.putFleet)
	route(s, a, get("/profiles", tag, "List profiles by name"), s.listProfiles)
	route(s, a, get("/profiles/{name}", tag, "Get a profile"), s.getProfile)
	route(s, a, put("/profiles/{name}", tag, "Create or replace a profile, once a sample passes the lints"), s.putProfile)
	route(s, a, get("/operator-tokens", tag, "List operator tokens"), s.listOperatorTokens)
	route(s, a, add("/operator-tokens", tag, "Make an operator token; only this answer holds its secret"), s.createOperatorToken)
	route(s, a, act("/operator-tokens/{id}/revoke", tag, "End an operator token at once"), s.revokeOperatorToken)
}

func (s *Server) listFleets(ctx context.Context, in *api.Paging) (api.Page[api.Fleet], error) {
	list, err := s.Registry.Fleets(ctx)
	return pageOf(page(list, "", shapeFleet).Items, *in, func(f api.Fleet) string { return f.Name }), err
}

func (s *Server) getFleet(ctx context.Context, in *Named) (api.Fleet, error) {
	f, err := s.Registry.Fleet(ctx, s.Registry.DB, in.Name)
	return shapeFleet(f), err
}

func (s *Server) putFleet(ctx context.Context, in *struct {
	Named
	Body api.PutFleet
},
) (api.Fleet, error) {
	b := in.Body
	var rules *countersign.Rules
	if b.Rules != nil {
		r, err := rulesOf(b.Rules)
		if err != nil {
			return api.Fleet{}, err
		}
		rules = &r
	}
	f, err := s.Provisioner.SaveFleet(ctx, in.Name, func(f *countersign.Fleet) {
		set(&f.Issuer, b.Issuer)
		set(&f.Profile, b.Profile)
		if b.Methods != nil {
			f.Methods = nil
			for _, m := range *b.Methods {
				f.Methods = append(f.Methods, countersign.Method(m))
			}
		}
		set(&f.TrustDomain, b.TrustDomain)
		set(&f.Rules, rules)
		setAccess(&f.Rules.Access, b)
		setRespond(&f.Rules, b.Respond)
		if b.OverlapSeconds != nil {
			f.Overlap = time.Duration(*b.OverlapSeconds) * time.Second
		}
	}, s.by(ctx))
	return shapeFleet(f), err
}

// setAccess changes what the request names of what a fleet accepts at the door.
func setAccess(a *countersign.Access, b api.PutFleet) {
	if b.AccessKinds != nil {
		a.Kinds = nil
		for _, k := range *b.AccessKinds {
			a.Kinds = append(a.Kinds, countersign.AccessKind(k))
		}
	}
	set(&a.Guests, b.Guests)
}

// set changes what the request names and leaves the rest.
func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}

func (s *Server) listProfiles(ctx context.Context, in *api.Paging) (api.Page[api.Profile], error) {
	list, err := s.CA.Profiles(ctx)
	return pageOf(page(list, "", shapeProfile).Items, *in, func(p api.Profile) string { return p.Name }), err
}

func (s *Server) getProfile(ctx context.Context, in *Named) (api.Profile, error) {
	p, err := s.CA.Profile(ctx, s.CA.DB, in.Name)
	return shapeProfile(p), err
}

func (s *Server) putProfile(ctx context.Context, in *struct {
	Named
	Body api.Profile
},
) (api.Profile, error) {
	if in.Body.Name != in.Name {
		return api.Profile{}, countersign.Errorf(countersign.BadRequest, "the path names %q, the body %.80q", in.Name, in.Body.Name).
			WithNext("write the same name in both")
	}
	if err := s.Provisioner.SaveProfile(ctx, profileOf(in.Body), s.by(ctx)); err != nil {
		return api.Profile{}, err
	}
	return s.getProfile(ctx, &in.Named)
}

func (s *Server) listOperatorTokens(ctx context.Context, in *api.Paging) (api.Page[api.OperatorToken], error) {
	list, next, err := s.Operators.List(ctx, in.After, limitOf(*in))
	return page(list, next, shapeOperatorToken), err
}

func (s *Server) createOperatorToken(ctx context.Context, in *struct{ Body api.NewOperatorToken }) (api.IssuedOperatorToken, error) {
	t := operator.Token{Name: in.Body.Name, Role: operator.Role(in.Body.Role)}
	made, secret, err := s.Provisioner.CreateOperatorToken(ctx, t, time.Duration(in.Body.TTLSeconds)*time.Second, s.by(ctx))
	return api.IssuedOperatorToken{OperatorToken: shapeOperatorToken(made), Secret: secret}, err
}

func (s *Server) revokeOperatorToken(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"64"`
},
) (api.OperatorToken, error) {
	t, err := s.Provisioner.RevokeOperatorToken(ctx, in.ID, s.by(ctx))
	return shapeOperatorToken(t), err
}
