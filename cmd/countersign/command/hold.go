package command

import (
	"context"
	"fmt"
	"iter"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func holdCommand(env *Env) *cobra.Command {
	return group("hold", "Devices that this node refuses although the database could not record it", []string{"holds"},
		holdList(env), holdRetry(env), holdDrop(env))
}

func holdID(h api.Hold) string { return h.ID }

func holdList(env *Env) *cobra.Command {
	return listCommand(env, &cobra.Command{Use: "list", Short: "List the emergency holds of this node"}, (*sdk.Admin).Holds, view[api.Hold]{name: holdID, cols: []col[api.Hold]{
		{"ID", holdID},
		{"DEVICE", func(h api.Hold) string { return h.Device }},
		{"ACT", func(h api.Hold) string { return h.Act }},
		{"STATE", func(h api.Hold) string { return h.State }},
		{"SINCE", func(h api.Hold) string { return env.ago(h.At) }},
		{"BY", func(h api.Hold) string { return h.By }},
		{"LAST ERROR", func(h api.Hold) string { return h.Error }},
	}})
}

func holdRetry(env *Env) *cobra.Command {
	return actCommand(env, &cobra.Command{Use: "retry ID", Short: "Record the act of an emergency hold now"}, holdIDs(env), (*sdk.Admin).RetryHold, func(p printer, h *api.Hold) string {
		p.done("the %s of %s is on record", h.Act, h.Device)
		return h.ID
	})
}

func holdDrop(env *Env) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "drop ID", Short: "End an emergency hold without recording its act", ValidArgsFunction: first(holdIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := env.confirm(yes, fmt.Sprintf("Drop hold %s? Its device may come back, and nothing was taken away from it.", args[0])); err != nil {
				return err
			}
			h, err := env.admin().DropHold(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			env.stderr().done("the hold on %s is dropped: its %s is not recorded", h.Device, h.Act)
			return acted(env, *h, h.ID)
		},
	}
	yesFlag(c, &yes)
	return c
}

func holdIDs(env *Env) completer {
	return live(env, func(c *sdk.Admin, ctx context.Context) iter.Seq2[api.Hold, error] { return c.Holds(ctx) }, holdID)
}
