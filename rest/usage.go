package rest

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/danielgtaylor/huma/v2"
)

func (s *Server) routeUsage(a huma.API) {
	route(s, a, get("/usage", "Devices", "List what devices use of this node and its message store, those with the most octets first"), s.listUsage)
	route(s, a, act("/devices/{id}/purge", "Devices", "Drop what this node stores for a device"), s.purge)
}

func (s *Server) listUsage(ctx context.Context, in *struct {
	api.UsageFilter
	api.Paging
},
) (api.Page[api.Usage], error) {
	f := countersign.UsageFilter{Device: in.Device, Limit: limitOf(in.Paging) + 1} // one more shows whether the list goes on
	if in.After != "" {
		octets, device, ok := strings.Cut(in.After, ":")
		n, err := strconv.ParseInt(octets, 10, 64)
		if err != nil || !ok || device == "" {
			return api.Page[api.Usage]{}, badCursor()
		}
		f.After = countersign.UsagePlace{Octets: n, Device: device}
	}
	list, err := s.Provisioner.Usage(ctx, f)
	next := ""
	if err == nil && len(list) == f.Limit {
		list = list[:f.Limit-1]
		last := list[len(list)-1]
		next = fmt.Sprintf("%d:%s", last.Octets(), last.Device)
	}
	return page(list, next, shapeUsage), err
}

func (s *Server) purge(ctx context.Context, in *struct {
	DeviceID
	Body api.Purge
},
) (api.Purged, error) {
	a := s.act(ctx, &actOn{DeviceID: in.DeviceID, Body: &api.Act{Note: in.Body.Note}})
	what := countersign.Stored{Retained: in.Body.Retained, Queued: in.Body.Queued, Sessions: in.Body.Sessions}
	p, err := s.Provisioner.Purge(ctx, a, what)
	return api.Purged{
		Device: in.ID, Retained: p.Retained, RetainedOctets: p.RetainedOctets, Queued: p.Queued, QueuedOctets: p.QueuedOctets, Sessions: p.Sessions,
	}, err
}

func shapeUsage(u countersign.Usage) api.Usage {
	return api.Usage{
		Device: u.Device, Octets: u.Octets(), Retained: u.Retained, RetainedOctets: u.RetainedOctets, Queued: u.Queued, QueuedOctets: u.QueuedOctets,
		Subscriptions: u.Subscriptions, Sessions: u.Sessions, Kept: u.Kept,
	}
}
