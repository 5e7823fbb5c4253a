package command

import (
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func sessionCommand(env *Env) *cobra.Command {
	return group("session", "Live connections", []string{"sessions"}, sessionList(env), sessionDisconnect(env))
}

func sessionList(env *Env) *cobra.Command {
	var f api.SessionFilter
	c := listCommand(env, &cobra.Command{Use: "list", Short: "List live connections"}, filtered((*sdk.Admin).Sessions, &f), view[api.Session]{
		name: func(s api.Session) string { return s.ID },
		cols: []col[api.Session]{
			{"DEVICE", func(s api.Session) string { return s.Device }},
			{"SINCE", func(s api.Session) string { return span(env.Now().Sub(s.Since)) }},
			{"FROM", func(s api.Session) string { return s.Remote }},
			{"PROTO", func(s api.Session) string { return s.Protocol }},
			{"CLIENT", func(s api.Session) string { return s.ClientID }},
			{"CERT", func(s api.Session) string { return s.Serial }},
			{"EXPIRES", func(s api.Session) string { return env.until(s.NotAfter) }},
		},
	})
	deviceFlag(env, c, &f.Device, "only this device")
	return c
}

func sessionDisconnect(env *Env) *cobra.Command {
	var session, why string
	c := &cobra.Command{
		Use: "disconnect DEVICE | --session ID", Short: "End live connections on every node; the device keeps what it has and may come back",
		Example: `  countersign session disconnect pump-7 --reason 'to take the new policy'
  countersign session disconnect --session $(countersign session list --device pump-7 --limit 1 -o name)`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (session != "") {
				return usagef("name a device, or a session with --session")
			}
			var done *api.Disconnected
			var err error
			if session != "" {
				done, err = env.admin().DisconnectSession(cmd.Context(), session, api.Act{Note: why})
			} else {
				done, err = env.admin().Disconnect(cmd.Context(), args[0], api.Act{Note: why})
			}
			if err != nil {
				return err
			}
			p := env.stderr()
			if done.Sessions == 0 {
				p.done("no session on this node; those on other nodes end now")
			} else {
				p.done("%s closed in %s; those on other nodes end now", count(done.Sessions, "session"), millis(time.Duration(done.CutMicros)*time.Microsecond))
			}
			p.linef("  it may come back: to keep it out, suspend the device")
			return acted(env, *done, done.Device)
		},
	}
	c.Flags().StringVar(&session, "session", "", "id of one session, as session list -o name prints it")
	reasonFlag(c, &why)
	return c
}
