package rest

import (
	"context"
	"encoding/json"
	"maps"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/registry"
)

// Named is a path parameter.
type Named struct {
	Name string `path:"name" maxLength:"63"`
}

// fleets serves fleets and their rules.
type fleets struct {
	registry    *registry.Registry
	provisioner *provision.Provisioner
}

func (f *fleets) list(ctx context.Context, in *api.Paging) (api.Page[api.Fleet], error) {
	list, err := f.registry.Fleets(ctx)
	return cutPage(each(list, shapeFleet), *in, func(f api.Fleet) string { return f.Name }), err
}

func (f *fleets) get(ctx context.Context, in *Named) (api.Fleet, error) {
	return as(shapeFleet)(f.registry.Fleet(ctx, f.registry.DB, in.Name))
}

func (f *fleets) put(ctx context.Context, in *struct {
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
	return as(shapeFleet)(f.provisioner.SaveFleet(ctx, in.Name, func(f *countersign.Fleet) {
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
	}, byOf(ctx)))
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

func (f *fleets) patchRules(ctx context.Context, in *struct {
	Named
	DryRun  bool `query:"dry_run" doc:"Answer with the fleet as it would be, and change nothing."`
	RawBody []byte
},
) (api.Fleet, error) {
	var change map[string]any
	if err := json.Unmarshal(in.RawBody, &change); err != nil || change == nil {
		return api.Fleet{}, countersign.Errorf(countersign.BadRequest, "the body is not a JSON object").
			WithNext("send the rules that change, null for those that end")
	}
	order := provision.FleetOrder{Name: in.Name, Known: true, Dry: in.DryRun, Change: func(f *countersign.Fleet) error {
		rules, err := mergeRules(f.Rules, change)
		f.Rules = rules
		return err
	}}
	return as(shapeFleet)(f.provisioner.ChangeFleet(ctx, order, byOf(ctx)))
}

// setRespond changes what a fleet says about some rules and leaves the others.
func setRespond(rules *countersign.Rules, change map[string][]string) {
	out := maps.Clone(rules.Respond) // the transaction may be tried again
	for name, acts := range change {
		if out == nil {
			out = map[string][]countersign.Mitigation{}
		}
		delete(out, name)
		for _, m := range acts {
			out[name] = append(out[name], countersign.Mitigation(m))
		}
	}
	rules.Respond = out
}
