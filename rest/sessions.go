package rest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
)

// sessions serves live sessions, and what devices use of this node.
type sessions struct {
	live        func() []countersign.Session
	provisioner *provision.Provisioner
}

func (s *sessions) list(_ context.Context, in *struct {
	api.SessionFilter
	api.Paging
},
) (api.Page[api.Session], error) {
	var list []api.Session
	for _, live := range s.live() {
		if in.Device == "" || live.Device == in.Device {
			list = append(list, shapeSession(live))
		}
	}
	return cutPage(list, in.Paging, func(v api.Session) string { return v.Device + "/" + v.ID }), nil
}

func (s *sessions) disconnect(ctx context.Context, in *struct {
	ID   string   `path:"id" maxLength:"64" doc:"Session id."`
	Body *api.Act `required:"false"`
},
) (api.Disconnected, error) {
	a := (&actOn{Body: in.Body}).act(ctx)
	live := s.live()
	if i := slices.IndexFunc(live, func(v countersign.Session) bool { return v.ID == in.ID }); i >= 0 {
		a.Device = live[i].Device // one of another node is found on record, and ends there
	}
	return disconnect(ctx, s.provisioner, a, in.ID)
}

// disconnect ends the live sessions of a device, or one of them.
func disconnect(ctx context.Context, p *provision.Provisioner, a ra.Act, session string) (api.Disconnected, error) {
	done, err := p.Disconnect(ctx, a, session)
	if err != nil {
		return api.Disconnected{}, err
	}
	return api.Disconnected{Device: done.Device, Session: session, At: done.At.UTC(), Sessions: done.Sessions, CutMicros: done.CutIn.Microseconds()}, nil
}

func (s *sessions) usage(ctx context.Context, in *struct {
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
	list, err := s.provisioner.Usage(ctx, f)
	next := ""
	if err == nil && len(list) == f.Limit {
		list = list[:f.Limit-1]
		last := list[len(list)-1]
		next = fmt.Sprintf("%d:%s", last.Octets(), last.Device)
	}
	return api.Page[api.Usage]{Items: each(list, shapeUsage), Next: next}, err
}

func shapeUsage(u countersign.Usage) api.Usage {
	return api.Usage{
		Device: u.Device, Octets: u.Octets(), Retained: u.Retained, RetainedOctets: u.RetainedOctets, Queued: u.Queued, QueuedOctets: u.QueuedOctets,
		Subscriptions: u.Subscriptions, Sessions: u.Sessions, Kept: u.Kept,
	}
}
