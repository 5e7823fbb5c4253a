package command

import (
	"context"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func blockCommand(env *Env) *cobra.Command {
	return group("block", "Addresses that are refused", []string{"blocks"},
		listCommand(env, &cobra.Command{Use: "list", Short: "List the addresses that are blocked"}, all((*sdk.Admin).Blocks), viewOf[api.Block](env, "NETWORK network, BY operator|server:manual, SINCE since, ENDS IN until:until, REASON reason")), blockAdd(env),
		actCommand(env, &cobra.Command{Use: "remove NETWORK", Aliases: []string{"rm"}, Short: "End a block at once"}, blockNetworks(env), (*sdk.Admin).Unblock, func(p printer, b *api.Block) string {
			p.done("%s may come in again", b.Network)
			return b.Network
		}))
}

func blockAdd(env *Env) *cobra.Command {
	var b api.NewBlock
	var ttl time.Duration
	var yes bool
	c := doCommand(env, &cobra.Command{
		Use: "add NETWORK", Short: "Refuse an address or a network, devices with good certificates too",
		Example: "  countersign block add 203.0.113.0/24 --ttl 24h --reason 'scans us'",
	}, func(ctx context.Context, args []string) (*api.Block, error) {
		network, err := countersign.ParseNetwork(args[0])
		if err != nil {
			return nil, err
		}
		if err := env.confirm(yes, fmt.Sprintf("Block %s for %s? Nothing from there enrolls or connects; remove undoes it.", network, span(ttl))); err != nil {
			return nil, err
		}
		b.Network, b.TTLSeconds = network.String(), int64(ttl/time.Second)
		return env.admin().Block(ctx, b)
	}, func(p printer, made *api.Block) string {
		p.done("%s is blocked for %s; sessions that are open stay", made.Network, span(ttl))
		p.linef("  undo: countersign block remove %s", made.Network)
		return made.Network
	})
	durationFlag(c.Flags(), &ttl, "ttl", time.Hour, "for how long, 1m to 8760h")
	reasonFlag(c, &b.Reason)
	yesFlag(c, &yes)
	return c
}
