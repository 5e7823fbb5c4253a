package main

import (
	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

func (a *app) sessionCommand() *cobra.Command {
	var f api.SessionFilter
	var limit int
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List live connections", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(a, a.paged(limit).Sessions(cmd.Context(), f), limit, view[api.Session]{
				name: func(s api.Session) string { return s.ID },
				cols: []col[api.Session]{
					{"DEVICE", func(s api.Session) string { return s.Device }},
					{"SINCE", func(s api.Session) string { return span(a.now().Sub(s.Since)) }},
					{"FROM", func(s api.Session) string { return s.Remote }},
					{"PROTO", func(s api.Session) string { return s.Protocol }},
					{"CLIENT", func(s api.Session) string { return s.ClientID }},
					{"CERT", func(s api.Session) string { return s.Serial }},
					{"EXPIRES", func(s api.Session) string { return a.until(s.NotAfter) }},
				},
			})
		},
	}
	c.Flags().StringVar(&f.Device, "device", "", "only this device")
	completeWith(c, "device", a.deviceIDs)
	limitFlag(c, &limit)
	return group("session", "Live connections", []string{"sessions"}, c)
}
