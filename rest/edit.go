package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/danielgtaylor/huma/v2"
)

func (s *Server) routeEdits(a huma.API) {
	route(s, a, patch("/devices/{id}", "Devices", "Change owner, purpose, tags or fleet of a device (RFC 7396)"), s.editDevice)
	route(s, a, act("/devices/{id}/disconnect", "Devices", "End the live sessions of a device on every node; it may come back"), s.disconnectDevice)
	route(s, a, act("/sessions/{id}/disconnect", "Devices", "End one live session, on whichever node it is"), s.disconnectSession)
	route(s, a, patch("/fleets/{name}/rules", "Setup", "Change some of a fleet's rules (RFC 7396)"), s.patchRules)
}

func (s *Server) editDevice(ctx context.Context, in *struct {
	DeviceID
	RawBody []byte
	Body    api.EditDevice
},
) (api.EditedDevice, error) {
	c := registry.Change{Owner: in.Body.Owner, Purpose: in.Body.Purpose, Fleet: in.Body.Fleet, Tags: in.Body.Tags}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(in.RawBody, &given); err != nil {
		return api.EditedDevice{}, countersign.Errorf(countersign.BadRequest, "the body is not a JSON object")
	}
	var none string
	for name, field := range map[string]**string{"owner": &c.Owner, "purpose": &c.Purpose} {
		if isNull(given[name]) {
			*field = &none
		}
	}
	if isNull(given["fleet"]) || isNull(given["tags"]) {
		return api.EditedDevice{}, countersign.Errorf(countersign.BadRequest, "fleet and tags cannot be null").
			WithNext("leave them out, or name each tag that is to go with null")
	}
	d, changed, done, err := s.Provisioner.EditDevice(ctx, in.ID, c, s.by(ctx))
	return api.EditedDevice{Device: shapeDevice(d), Changed: changed, Sessions: done.Sessions}, err
}

func isNull(v json.RawMessage) bool { return string(v) == "null" }

func (s *Server) disconnectDevice(ctx context.Context, in *actOn) (api.Disconnected, error) {
	return s.disconnect(ctx, s.act(ctx, in), "")
}

func (s *Server) disconnectSession(ctx context.Context, in *struct {
	ID   string   `path:"id" maxLength:"64" doc:"Session id."`
	Body *api.Act `required:"false"`
},
) (api.Disconnected, error) {
	a := s.act(ctx, &actOn{Body: in.Body})
	live := s.Sessions()
	if i := slices.IndexFunc(live, func(v countersign.Session) bool { return v.ID == in.ID }); i >= 0 {
		a.Device = live[i].Device // one of another node is found on record, and ends there
	}
	return s.disconnect(ctx, a, in.ID)
}

func (s *Server) disconnect(ctx context.Context, a ra.Act, session string) (api.Disconnected, error) {
	done, err := s.Provisioner.Disconnect(ctx, a, session)
	if err != nil {
		return api.Disconnected{}, err
	}
	return api.Disconnected{Device: done.Device, Session: session, At: done.At.UTC(), Sessions: done.Sessions, CutMicros: done.CutIn.Microseconds()}, nil
}

func (s *Server) patchRules(ctx context.Context, in *struct {
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
	f, err := s.Provisioner.ChangeFleet(ctx, order, s.by(ctx))
	return shapeFleet(f), err
}

// mergeRules applies a JSON merge patch to rules. A rule that there is not is refused.
func mergeRules(now countersign.Rules, change map[string]any) (out countersign.Rules, err error) {
	b, err := json.Marshal(now)
	if err != nil {
		return out, err
	}
	var all map[string]any
	if err := json.Unmarshal(b, &all); err != nil {
		return out, err
	}
	b, err = json.Marshal(merge(all, change))
	if err != nil {
		return out, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var in api.Rules
	if err := dec.Decode(&in); err != nil {
		return out, countersign.Errorf(countersign.BadRequest, "the rules cannot be read: %v", err).WithNext("use the names that fleet rules have")
	}
	return rulesOf(&in)
}

// merge is MergePatch of RFC 7396, 2.
func merge(target, patch map[string]any) map[string]any {
	out := maps.Clone(target)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range patch {
		object, nested := v.(map[string]any)
		switch {
		case v == nil:
			delete(out, k)
		case nested:
			inner, _ := out[k].(map[string]any)
			out[k] = merge(inner, object)
		default:
			out[k] = v
		}
	}
	return out
}
