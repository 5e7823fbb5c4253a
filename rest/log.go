package rest

import (
	"context"
	"encoding/hex"
	"strconv"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/registry"
)

// eventLog serves the log.
type eventLog struct {
	log      *event.Log
	registry *registry.Registry
}

func (l *eventLog) list(ctx context.Context, in *struct {
	api.EventFilter
	api.Order
	api.Paging
},
) (api.Page[api.Event], error) {
	return l.page(ctx, event.Filter{
		Device: in.Device, Type: countersign.EventType(in.Type), Since: in.Since, Newest: in.Order.Order == "desc",
	}, in.Paging)
}

func (l *eventLog) verify(ctx context.Context, _ *struct{}) (api.Verification, error) {
	r, err := l.log.Verify(ctx)
	return api.Verification{
		Intact: r.BrokenAt == 0, Events: r.Events, Lost: r.Lost, Unsealed: r.Unsealed, Head: hex.EncodeToString(r.Head),
		BadSeq: r.BrokenAt, Reason: r.Problem,
	}, err
}

func (l *eventLog) listOfDevice(ctx context.Context, in *struct {
	DeviceID
	api.Order
	api.Paging
},
) (api.Page[api.Event], error) {
	p, err := l.page(ctx, event.Filter{Device: in.ID, Newest: in.Order.Order == "desc"}, in.Paging)
	if err == nil && len(p.Items) == 0 && in.After == "" {
		_, err = l.registry.Device(ctx, l.registry.DB, in.ID) // an unknown device has no events
	}
	return p, err
}

// page lists events; the cursor is the log's number.
func (l *eventLog) page(ctx context.Context, f event.Filter, p api.Paging) (api.Page[api.Event], error) {
	f.Limit = limitOf(p)
	if p.After != "" {
		after, err := strconv.ParseInt(p.After, 10, 64)
		if err != nil {
			return api.Page[api.Event]{}, badCursor()
		}
		f.After = after
	}
	list, next, err := l.log.List(ctx, f)
	cursor := ""
	if next != 0 {
		cursor = strconv.FormatInt(next, 10)
	}
	return api.Page[api.Event]{Items: each(list, shapeEvent), Next: cursor}, err
}

func badCursor() error {
	return countersign.Errorf(countersign.BadRequest, "after is no cursor of this list").WithNext("use the next of the page before")
}
