package rest

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/hold"
	"github.com/danielgtaylor/huma/v2"
)

func (s *Server) routeHolds(a huma.API) {
	const tag = "Holds"
	route(s, a, get("/holds", tag, "List the emergency holds of this node"), s.listHolds)
	route(s, a, act("/holds/{id}/retry", tag, "Record the act of an emergency hold now"), s.retryHold)
	route(s, a, act("/holds/{id}/drop", tag, "End an emergency hold without recording its act"), s.dropHold)
}

// holdID names a hold in a path.
type holdID struct {
	ID string `path:"id" maxLength:"40" doc:"Id of the hold."`
}

func (s *Server) listHolds(_ context.Context, in *api.Paging) (api.Page[api.Hold], error) {
	items := []api.Hold{}
	for _, h := range s.RA.Holds.List() {
		items = append(items, shapeHold(h))
	}
	return pageOf(items, *in, func(h api.Hold) string { return h.ID }), nil
}

func (s *Server) retryHold(ctx context.Context, in *holdID) (api.Hold, error) {
	for _, h := range s.RA.Holds.List() {
		if h.ID != in.ID {
			continue
		}
		out := shapeHold(h)
		out.State = "recorded"
		return out, s.RA.RetryHold(ctx, h.ID)
	}
	return api.Hold{}, countersign.Errorf(countersign.NotFound, "this node has no emergency hold %.40q", in.ID).
		WithNext("list the holds of this node; each node has its own, and one that was recorded is gone")
}

func (s *Server) dropHold(ctx context.Context, in *holdID) (api.Hold, error) {
	h, err := s.RA.DropHold(in.ID, s.by(ctx))
	return shapeHold(h), err
}

func shapeHold(h hold.Hold) api.Hold {
	out := api.Hold{
		ID: h.ID, Device: h.Device, Act: string(h.Act), By: string(h.Actor), Note: h.Note, At: h.At.UTC(), State: "held", Tries: h.Tries, Error: h.Error,
	}
	if h.Dropped() {
		out.State = "dropped"
	}
	return out
}
