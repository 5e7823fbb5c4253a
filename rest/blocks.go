package rest

import (
	"context"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/danielgtaylor/huma/v2"
)

func (s *Server) routeBlocks(a huma.API) {
	const tag = "Blocks"
	route(s, a, get("/blocks", tag, "List the addresses that are blocked, by network"), s.listBlocks)
	route(s, a, add("/blocks", tag, "Block an address or a network"), s.createBlock)
	route(s, a, remove("/blocks/{network}", tag, "End a block at once"), s.removeBlock)
}

func (s *Server) listBlocks(ctx context.Context, in *api.Paging) (api.Page[api.Block], error) {
	list, next, err := s.RA.Ledger.Blocks(ctx, in.After, limitOf(*in))
	return page(list, next, shapeBlock), err
}

func (s *Server) createBlock(ctx context.Context, in *struct{ Body api.NewBlock }) (api.Block, error) {
	network, err := countersign.ParseNetwork(in.Body.Network)
	if err != nil {
		return api.Block{}, err
	}
	by := s.by(ctx)
	b, err := s.RA.Ledger.Block(ctx, lockout.Block{
		Prefix: network, Reason: in.Body.Reason, Until: s.Now().Add(time.Duration(in.Body.TTLSeconds) * time.Second),
	}, by.Actor, by.Via)
	return shapeBlock(b), err
}

func (s *Server) removeBlock(ctx context.Context, in *struct {
	Network string `path:"network" maxLength:"64" doc:"The network with _ for its slash, which proxies would take for a part of the path; or an address."`
},
) (api.Block, error) {
	network, err := countersign.ParseNetwork(strings.Replace(in.Network, "_", "/", 1))
	if err != nil {
		return api.Block{}, err
	}
	by := s.by(ctx)
	b, err := s.RA.Ledger.Unblock(ctx, network, by.Actor, by.Via)
	return shapeBlock(b), err
}

func shapeBlock(b lockout.Block) api.Block {
	return api.Block{
		Network: b.Prefix.String(), Manual: b.Manual, Reason: b.Reason, Failures: b.Failures, Strikes: b.Strikes,
		Since: b.Since.UTC(), Until: b.Until.UTC(),
	}
}
