package rest

import (
	"context"
	"encoding/json"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
)

// DeviceID is a path parameter. It is exported for huma, which passes over embedded
// structs that are not; so are the others of its kind.
type DeviceID struct {
	ID string `path:"id" maxLength:"128" doc:"Device id."`
}

// onDevice is an act on a device.
type onDevice[B any] struct {
	DeviceID
	Body B
}

// actOn is an act on a device that needs no more than a note.
type actOn struct {
	DeviceID
	Body *api.Act `required:"false"`
}

// act returns the act as the authority knows it.
func (in *actOn) act(ctx context.Context) ra.Act {
	by := byOf(ctx)
	return ra.Act{Device: in.ID, Actor: by.Actor, Via: by.Via, Note: value(in.Body).Note}
}

// devices serves devices and what is done to one as a whole.
type devices struct {
	registry    *registry.Registry
	ra          *ra.Authority
	provisioner *provision.Provisioner
	ca          *ca.CA
}

func (d *devices) list(ctx context.Context, in *struct {
	api.DeviceFilter
	api.Paging
},
) (api.Page[api.Device], error) {
	return asPage(shapeDevice)(d.registry.Devices(ctx, registry.Filter{
		Fleet: in.Fleet, State: countersign.DeviceState(in.State), After: in.After, Limit: limitOf(in.Paging),
	}))
}

func (d *devices) create(ctx context.Context, in *body[api.NewDevice]) (api.Device, error) {
	return as(shapeDevice)(d.provisioner.CreateDevice(ctx, countersign.Device{
		ID: in.Body.ID, Fleet: in.Body.Fleet, Owner: in.Body.Owner, Purpose: in.Body.Purpose, Tags: in.Body.Tags,
	}, byOf(ctx)))
}

func (d *devices) get(ctx context.Context, in *DeviceID) (api.Device, error) {
	e, err := d.registry.Device(ctx, d.registry.DB, in.ID)
	return shapeDevice(e.Device), err
}

func (d *devices) suspend(ctx context.Context, in *actOn) (api.Cut, error) {
	r, err := d.ra.Suspend(ctx, in.act(ctx))
	return cutOf(ctx, d.ca, r, countersign.CertificateHold), err
}

func (d *devices) retire(ctx context.Context, in *actOn) (api.Cut, error) {
	r, err := d.ra.Retire(ctx, in.act(ctx))
	return cutOf(ctx, d.ca, r, countersign.CessationOfOperation), err
}

func (d *devices) reactivate(ctx context.Context, in *actOn) (api.Device, error) {
	if _, err := d.ra.Reactivate(ctx, in.act(ctx)); err != nil {
		return api.Device{}, err
	}
	return d.get(ctx, &in.DeviceID)
}

func (d *devices) revoke(ctx context.Context, in *onDevice[api.Revoke]) (api.Cut, error) {
	return revoke(ctx, d.ra, countersign.RevokeRequest{Device: in.ID}, in.Body)
}

func (d *devices) edit(ctx context.Context, in *struct {
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
	edited, changed, done, err := d.provisioner.EditDevice(ctx, in.ID, c, byOf(ctx))
	return api.EditedDevice{Device: shapeDevice(edited), Changed: changed, Sessions: done.Sessions}, err
}

func isNull(v json.RawMessage) bool { return string(v) == "null" }

func (d *devices) disconnect(ctx context.Context, in *actOn) (api.Disconnected, error) {
	return disconnect(ctx, d.provisioner, in.act(ctx), "")
}

func (d *devices) purge(ctx context.Context, in *onDevice[api.Purge]) (api.Purged, error) {
	a := (&actOn{DeviceID: in.DeviceID, Body: &api.Act{Note: in.Body.Note}}).act(ctx)
	what := countersign.Stored{Retained: in.Body.Retained, Queued: in.Body.Queued, Sessions: in.Body.Sessions}
	p, err := d.provisioner.Purge(ctx, a, what)
	return api.Purged{
		Device: in.ID, Retained: p.Retained, RetainedOctets: p.RetainedOctets, Queued: p.Queued, QueuedOctets: p.QueuedOctets, Sessions: p.Sessions,
	}, err
}
