package rest

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/hold"
	"github.com/countersign-iot/countersign/ra"
)

// holdID names a hold in a path.
type holdID struct {
	ID string `path:"id" maxLength:"40" doc:"Id of the hold."`
}

// holds serves the emergency holds of this node.
type holds struct{ ra *ra.Authority }

func (h *holds) list(_ context.Context, in *api.Paging) (api.Page[api.Hold], error) {
	return cutPage(each(h.ra.Holds.List(), shapeHold), *in, func(h api.Hold) string { return h.ID }), nil
}

func (h *holds) retry(ctx context.Context, in *holdID) (api.Hold, error) {
	for _, one := range h.ra.Holds.List() {
		if one.ID == in.ID {
			out := shapeHold(one)
			out.State = "recorded"
			return out, h.ra.RetryHold(ctx, one.ID)
		}
	}
	return api.Hold{}, countersign.Errorf(countersign.NotFound, "this node has no emergency hold %.40q", in.ID).
		WithNext("list the holds of this node; each node has its own, and one that was recorded is gone")
}

func (h *holds) drop(ctx context.Context, in *holdID) (api.Hold, error) {
	return as(shapeHold)(h.ra.DropHold(in.ID, byOf(ctx)))
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
