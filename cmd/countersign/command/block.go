package command

import (
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func blockCommand(env *Env) *cobra.Command {
	return group("block", "Addresses that are refused", []string{"blocks"}, blockList(env), blockAdd(env), blockRemove(env))
}

func blockNetwork(b api.Block) string { return b.Network }

func blockList(env *Env) *cobra.Command {
	return listCommand(env, &cobra.Command{Use: "list", Short: "List the addresses that are blocked"}, (*sdk.Admin).Blocks, view[api.Block]{name: blockNetwork, cols: []col[api.Block]{
		{"NETWORK", blockNetwork},
		{"BY", blockMaker},
		{"SINCE", func(b api.Block) string { return env.ago(b.Since) }},
		{"ENDS IN", func(b api.Block) string { return env.until(b.Until) }},
		{"REASON", func(b api.Block) string { return b.Reason }},
	}})
}

func blockMaker(b api.Block) string {
	if b.Manual {
		return "operator"
	}
	return "server"
}

func blockAdd(env *Env) *cobra.Command {
	var b api.NewBlock
	var ttl time.Duration
	var yes bool
	c := &cobra.Command{
		Use: "add NETWORK", Short: "Refuse an address or a network, devices with good certificates too",
		Example: "  countersign block add 203.0.113.0/24 --ttl 24h --reason 'scans us'",
		RunE: func(cmd *cobra.Command, args []string) error {
			network, err := countersign.ParseNetwork(args[0])
			if err != nil {
				return err
			}
			if err := env.confirm(yes, fmt.Sprintf("Block %s for %s? Nobody from there enrolls or connects; remove undoes it.", network, span(ttl))); err != nil {
				return err
			}
			b.Network, b.TTLSeconds = network.String(), int64(ttl/time.Second)
			made, err := env.admin().Block(cmd.Context(), b)
			if err != nil {
				return err
			}
			env.stderr().done("%s is blocked for %s; sessions that are open stay", made.Network, span(ttl))
			env.stderr().linef("  undo: countersign block remove %s", made.Network)
			return acted(env, *made, made.Network)
		},
	}
	durationFlag(c.Flags(), &ttl, "ttl", time.Hour, "for how long, 1m to 8760h")
	reasonFlag(c, &b.Reason)
	yesFlag(c, &yes)
	return c
}

func blockRemove(env *Env) *cobra.Command {
	return actCommand(env, &cobra.Command{Use: "remove NETWORK", Aliases: []string{"rm"}, Short: "End a block at once"}, blockNetworks(env), (*sdk.Admin).Unblock, func(p printer, b *api.Block) string {
		p.done("%s may come in again", b.Network)
		return b.Network
	})
}

func blockNetworks(env *Env) completer {
	return live(env, (*sdk.Admin).Blocks, blockNetwork)
}
