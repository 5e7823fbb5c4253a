package rest

import (
	"context"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/lockout"
)

// blocks serves the addresses that are blocked.
type blocks struct {
	ledger *lockout.Ledger
	now    func() time.Time
}

func (b *blocks) list(ctx context.Context, in *api.Paging) (api.Page[api.Block], error) {
	return asPage(shapeBlock)(b.ledger.Blocks(ctx, in.After, limitOf(*in)))
}

func (b *blocks) create(ctx context.Context, in *body[api.NewBlock]) (api.Block, error) {
	network, err := countersign.ParseNetwork(in.Body.Network)
	if err != nil {
		return api.Block{}, err
	}
	by := byOf(ctx)
	return as(shapeBlock)(b.ledger.Block(ctx, lockout.Block{
		Prefix: network, Reason: in.Body.Reason, Until: b.now().Add(time.Duration(in.Body.TTLSeconds) * time.Second),
	}, by.Actor, by.Via))
}

func (b *blocks) remove(ctx context.Context, in *struct {
	Network string `path:"network" maxLength:"64" doc:"The network with _ for its slash, which proxies would take for a part of the path; or an address."`
},
) (api.Block, error) {
	network, err := countersign.ParseNetwork(strings.Replace(in.Network, "_", "/", 1))
	if err != nil {
		return api.Block{}, err
	}
	by := byOf(ctx)
	return as(shapeBlock)(b.ledger.Unblock(ctx, network, by.Actor, by.Via))
}

func shapeBlock(b lockout.Block) api.Block {
	return api.Block{
		Network: b.Prefix.String(), Manual: b.Manual, Reason: b.Reason, Failures: b.Failures, Strikes: b.Strikes,
		Since: b.Since.UTC(), Until: b.Until.UTC(),
	}
}
