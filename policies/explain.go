package policies

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
)

// draftVersion is the version of a draft, which has no number yet.
const draftVersion = -1

// Explain answers a question by the record as it is now.
func (s *Store) Explain(ctx context.Context, q api.PolicyQuestion) (api.PolicyAnswer, error) {
	subject, err := s.subject(ctx, &q)
	if err != nil {
		return api.PolicyAnswer{}, err
	}
	if q.ClientID != "" {
		subject.ClientID = q.ClientID
	}
	in := InForce{Version: draftVersion}
	if q.Source == "" {
		in, err = s.Of(ctx, subject.Fleet)
	} else {
		in.Policy, err = parse(q.Source)
	}
	if err != nil {
		return api.PolicyAnswer{}, err
	}
	a := api.PolicyAnswer{
		Fleet: subject.Fleet, Version: in.Version, Decision: api.PolicyDecision(in.Policy.Explain(subject, policy.Action(q.Action), q.Topic)),
	}
	client := subject.ClientID
	if q.Action == string(policy.Connect) && q.Topic != "" {
		client = q.Topic
	}
	if a.Decision.Allowed && subject.Kind == policy.Devices && !MayUseClientID(subject.Device, client) {
		a.Decision = api.PolicyDecision{Why: NotItsClientID(subject.Device, client)}
	}
	return a, nil
}

// subject finds the client that a question is about.
func (s *Store) subject(ctx context.Context, q *api.PolicyQuestion) (policy.Subject, error) {
	name := policy.Subject{Fleet: q.Fleet, Scope: q.Scope}
	switch {
	case q.Device != "" && q.Guest == "" && q.App == "":
		found, err := s.device(ctx, q.Device)
		if err == nil && q.Fleet != "" && q.Fleet != found.Fleet {
			err = countersign.Errorf(countersign.BadRequest, "device %s is in fleet %s", q.Device, found.Fleet).WithNext("leave the fleet out")
		}
		return found, err
	case q.Guest != "" && q.Device == "" && q.App == "":
		name.Kind, name.Device, name.ClientID = policy.Guests, "guest/"+q.Guest, q.Guest
	case q.App != "" && q.Device == "" && q.Guest == "":
		name.Kind, name.Device, name.ClientID = policy.Apps, "operator/"+q.App, q.App
	default:
		return name, countersign.Errorf(countersign.BadRequest, "the question does not name one client").WithNext("name one device, guest or app")
	}
	_, err := s.Present(ctx, q.Fleet) // there is such a fleet
	return name, err
}

// device is a device as a policy sees it: with its active certificate, under its own
// client identifier.
func (s *Store) device(ctx context.Context, device string) (policy.Subject, error) {
	found := policy.Subject{Kind: policy.Devices, Device: device, ClientID: device}
	var name string
	err := s.DB.QueryRow(ctx, `SELECT d.fleet, COALESCE((SELECT c.issuer || '/' || c.serial FROM certificate c WHERE c.device = d.id AND c.state IN ('active', 'pending')
		ORDER BY c.issued_at DESC LIMIT 1), '') FROM device d WHERE d.id = $1`, device).Scan(&found.Fleet, &name)
	if err != nil {
		missing := countersign.Errorf(countersign.NotFound, "there is no device %.140q", device).WithNext("list the devices")
		return found, store.RowError(err, missing, "couldn't read device "+device)
	}
	var certs []countersign.CertRef
	if ref, err := countersign.ParseCertRef(name); err == nil { // else it has none
		certs = append(certs, ref)
	}
	f, err := readFacts(ctx, s.DB, []string{device}, certs)
	found.Tags = f.tags[device]
	for _, cn := range f.names {
		found.CN = cn
	}
	return found, err
}
