package rest

import (
	"context"
	"encoding/hex"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/event"
	"github.com/danielgtaylor/huma/v2"
)

func (s *Server) routeLog(a huma.API) {
	const tag = "Log"
	route(s, a, get("/events", tag, "List events"), s.listEvents)
	route(s, a, act("/audit/verify", tag, "Check the hash chain of the whole log"), s.verify)
}

func (s *Server) listEvents(ctx context.Context, in *struct {
	api.EventFilter
	api.Order
	api.Paging
},
) (api.Page[api.Event], error) {
	return s.events(ctx, event.Filter{
		Device: in.Device, Type: countersign.EventType(in.Type), Since: in.Since, Newest: in.Order.Order == "desc",
	}, in.Paging)
}

func (s *Server) verify(ctx context.Context, _ *struct{}) (api.Verification, error) {
	r, err := s.Events.Verify(ctx)
	return api.Verification{
		Intact: r.BrokenAt == 0, Events: r.Events, Lost: r.Lost, Unsealed: r.Unsealed, Head: hex.EncodeToString(r.Head),
		BadSeq: r.BrokenAt, Reason: r.Problem,
	}, err
}
