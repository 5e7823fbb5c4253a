package main

import (
	"context"
	"fmt"
	"iter"

	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

func (a *app) holdCommand() *cobra.Command {
	return group("hold", "Devices that this node refuses although the database could not record it", []string{"holds"},
		a.holdList(), a.holdRetry(), a.holdDrop())
}

func holdID(h api.Hold) string { return h.ID }

func (a *app) holdList() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the emergency holds of this node", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(a, a.paged(limit).Holds(cmd.Context()), limit, view[api.Hold]{name: holdID, cols: []col[api.Hold]{
				{"ID", holdID},
				{"DEVICE", func(h api.Hold) string { return h.Device }},
				{"ACT", func(h api.Hold) string { return h.Act }},
				{"STATE", func(h api.Hold) string { return h.State }},
				{"SINCE", func(h api.Hold) string { return a.ago(h.At) }},
				{"BY", func(h api.Hold) string { return h.By }},
				{"LAST ERROR", func(h api.Hold) string { return h.Error }},
			}})
		},
	}
	limitFlag(c, &limit)
	return c
}

func (a *app) holdRetry() *cobra.Command {
	return &cobra.Command{
		Use: "retry ID", Short: "Record the act of an emergency hold now", Args: exactly("ID"), ValidArgsFunction: first(a.holdIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := a.admin().RetryHold(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			a.stderr().done("the %s of %s is on record", h.Act, h.Device)
			return acted(a, *h, h.ID)
		},
	}
}

func (a *app) holdDrop() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "drop ID", Short: "End an emergency hold without recording its act", Args: exactly("ID"), ValidArgsFunction: first(a.holdIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.confirm(yes, fmt.Sprintf("Drop hold %s? Its device may come back, and nothing was taken away from it.", args[0])); err != nil {
				return err
			}
			h, err := a.admin().DropHold(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			a.stderr().done("the hold on %s is dropped: its %s is not recorded", h.Device, h.Act)
			return acted(a, *h, h.ID)
		},
	}
	yesFlag(c, &yes)
	return c
}

func (a *app) holdIDs(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return live(cmd, prefix, func(ctx context.Context) iter.Seq2[api.Hold, error] { return a.admin().Holds(ctx) }, holdID)
}
