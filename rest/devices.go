package rest

import (
	"context"
	"strconv"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/danielgtaylor/huma/v2"
)

// DeviceID is a path parameter. It is exported for huma, which passes over embedded
// structs that are not; so are the others of its kind.
type DeviceID struct {
	ID string `path:"id" maxLength:"128" doc:"Device id."`
}

type actOn struct {
	DeviceID
	Body *api.Act `required:"false"`
}

func (s *Server) routeDevices(a huma.API) {
	const tag = "Devices"
	route(s, a, get("/devices", tag, "List devices by id"), s.listDevices)
	route(s, a, add("/devices", tag, "Register a device before it enrolls"), s.createDevice)
	route(s, a, get("/devices/{id}", tag, "Get a device"), s.getDevice)
	route(s, a, get("/devices/{id}/events", tag, "List the events of a device"), s.listDeviceEvents)
	route(s, a, act("/devices/{id}/suspend", tag, "Put a device on hold and cut its sessions"), s.suspend)
	route(s, a, act("/devices/{id}/reactivate", tag, "End a suspension"), s.reactivate)
	route(s, a, act("/devices/{id}/revoke", tag, "Take all certificates of a device away, for good, and cut its sessions"), s.revoke)
	route(s, a, act("/devices/{id}/retire", tag, "End a device's life: revoke, and keep its id taken"), s.retire)
	route(s, a, get("/sessions", tag, "List the live sessions of this node"), s.listSessions)
}

func (s *Server) listDevices(ctx context.Context, in *struct {
	api.DeviceFilter
	api.Paging
},
) (api.Page[api.Device], error) {
	list, next, err := s.Registry.Devices(ctx, registry.Filter{
		Fleet: in.Fleet, State: countersign.DeviceState(in.State), After: in.After, Limit: limitOf(in.Paging),
	})
	return page(list, next, shapeDevice), err
}

func (s *Server) createDevice(ctx context.Context, in *struct{ Body api.NewDevice }) (api.Device, error) {
	d, err := s.Provisioner.CreateDevice(ctx, countersign.Device{
		ID: in.Body.ID, Fleet: in.Body.Fleet, Owner: in.Body.Owner, Purpose: in.Body.Purpose, Tags: in.Body.Tags,
	}, s.by(ctx))
	return shapeDevice(d), err
}

func (s *Server) getDevice(ctx context.Context, in *DeviceID) (api.Device, error) {
	e, err := s.Registry.Device(ctx, s.Registry.DB, in.ID)
	return shapeDevice(e.Device), err
}

func (s *Server) listDeviceEvents(ctx context.Context, in *struct {
	DeviceID
	api.Order
	api.Paging
},
) (api.Page[api.Event], error) {
	p, err := s.events(ctx, event.Filter{Device: in.ID, Newest: in.Order.Order == "desc"}, in.Paging)
	if err == nil && len(p.Items) == 0 && in.After == "" {
		_, err = s.Registry.Device(ctx, s.Registry.DB, in.ID) // no events of nobody
	}
	return p, err
}

// events lists events; the cursor is the keeper's number.
func (s *Server) events(ctx context.Context, f event.Filter, p api.Paging) (api.Page[api.Event], error) {
	f.Limit = limitOf(p)
	if p.After != "" {
		after, err := strconv.ParseInt(p.After, 10, 64)
		if err != nil {
			return api.Page[api.Event]{}, badCursor()
		}
		f.After = after
	}
	list, next, err := s.Events.List(ctx, f)
	cursor := ""
	if next != 0 {
		cursor = strconv.FormatInt(next, 10)
	}
	return page(list, cursor, shapeEvent), err
}

func badCursor() error {
	return countersign.Errorf(countersign.BadRequest, "after is no cursor of this list").WithNext("use the next of the page before")
}

func (s *Server) act(ctx context.Context, in *actOn) ra.Act {
	by := s.by(ctx)
	a := ra.Act{Device: in.ID, Actor: by.Actor, Via: by.Via}
	if in.Body != nil {
		a.Note = in.Body.Note
	}
	return a
}

func (s *Server) suspend(ctx context.Context, in *actOn) (api.Cut, error) {
	r, err := s.RA.Suspend(ctx, s.act(ctx, in))
	return s.cut(ctx, r, countersign.CertificateHold), err
}

func (s *Server) retire(ctx context.Context, in *actOn) (api.Cut, error) {
	r, err := s.RA.Retire(ctx, s.act(ctx, in))
	return s.cut(ctx, r, countersign.CessationOfOperation), err
}

func (s *Server) reactivate(ctx context.Context, in *actOn) (api.Device, error) {
	if _, err := s.RA.Reactivate(ctx, s.act(ctx, in)); err != nil {
		return api.Device{}, err
	}
	return s.getDevice(ctx, &in.DeviceID)
}

func (s *Server) revoke(ctx context.Context, in *struct {
	DeviceID
	Body api.Revoke
},
) (api.Cut, error) {
	return s.revokeThis(ctx, countersign.RevokeRequest{Device: in.ID}, in.Body)
}

// revokeThis revokes what req names, for the reason in body.
func (s *Server) revokeThis(ctx context.Context, req countersign.RevokeRequest, body api.Revoke) (api.Cut, error) {
	reason, err := countersign.ParseReasonCode(body.Reason)
	if err != nil {
		return api.Cut{}, err
	}
	by := s.by(ctx)
	req.Reason, req.Note, req.Actor, req.Via = reason, body.Note, by.Actor, by.Via
	r, err := s.RA.Revoke(ctx, req)
	if err == nil {
		reason = r.Reason
	}
	return s.cut(ctx, r, reason), err
}

// cut shapes what an act took away; nil where it failed.
func (s *Server) cut(ctx context.Context, r *countersign.Revocation, reason countersign.ReasonCode) api.Cut {
	if r == nil {
		return api.Cut{}
	}
	out := api.Cut{
		Device: r.Device, Reason: reason.String(), Certificates: []api.CertRef{}, At: r.At.UTC(),
		Already: r.Already, Raised: r.Raised, Sessions: r.Sessions, CutMicros: r.CutIn.Microseconds(),
	}
	told := map[string]bool{}
	for _, c := range r.Certificates {
		out.Certificates = append(out.Certificates, api.CertRef{Issuer: c.Issuer, Serial: string(c.Serial)})
		if r.CRLNumber == 0 || told[c.Issuer] {
			continue
		}
		told[c.Issuer] = true
		if l, err := s.CA.CRLRecord(ctx, c.Issuer, 0); err == nil { // the act is done: a list that cannot be read is no failure of it
			out.CRLs = append(out.CRLs, api.CRLRef{Issuer: l.Issuer, Shard: l.Shard, Number: l.Number})
		}
	}
	return out
}

func (s *Server) listSessions(_ context.Context, in *struct {
	api.SessionFilter
	api.Paging
},
) (api.Page[api.Session], error) {
	var list []api.Session
	for _, live := range s.Sessions() {
		if in.Device == "" || live.Device == in.Device {
			list = append(list, shapeSession(live))
		}
	}
	return pageOf(list, in.Paging, func(v api.Session) string { return v.Device + "/" + v.ID }), nil
}
