package main

import (
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

func (a *app) sessionCommand() *cobra.Command {
	return group("session", "Live connections", []string{"sessions"}, a.sessionList(), a.sessionDisconnect())
}

func (a *app) sessionList() *cobra.Command {
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
	return c
}

func (a *app) sessionDisconnect() *cobra.Command {
	var session, why string
	c := &cobra.Command{
		Use: "disconnect DEVICE | --session ID", Short: "End live connections on every node; the device keeps what it has and may come back",
		Example: `  countersign session disconnect pump-7 --reason 'to take the new policy'
  countersign session disconnect --session $(countersign session list --device pump-7 --limit 1 -o name)`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: first(a.deviceIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (session != "") {
				return usagef("name a device, or a session with --session")
			}
			var done *api.Disconnected
			var err error
			if session != "" {
				done, err = a.admin().DisconnectSession(cmd.Context(), session, api.Act{Note: why})
			} else {
				done, err = a.admin().Disconnect(cmd.Context(), args[0], api.Act{Note: why})
			}
			if err != nil {
				return err
			}
			p := a.stderr()
			if done.Sessions == 0 {
				p.done("no session on this node; those on other nodes end now")
			} else {
				p.done("%s closed in %s; those on other nodes end now", count(done.Sessions, "session"), millis(time.Duration(done.CutMicros)*time.Microsecond))
			}
			p.linef("  it may come back: to keep it out, suspend the device")
			return acted(a, *done, done.Device)
		},
	}
	c.Flags().StringVar(&session, "session", "", "id of one session, as session list -o name prints it")
	c.Flags().StringVar(&why, "reason", "", "why, in your words")
	return c
}
