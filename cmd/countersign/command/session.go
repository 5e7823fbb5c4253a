package command

import (
	"context"
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
	c := listCommand(env, &cobra.Command{Use: "list", Short: "List live connections"}, filtered((*sdk.Admin).Sessions, &f), viewOf[api.Session](env, "DEVICE device, SINCE age:since, FROM remote, PROTO protocol, CLIENT client_id, CERT serial, EXPIRES until:not_after").named(func(s api.Session) string { return s.ID }))
	deviceFlag(env, c, &f.Device, "only this device")
	return c
}

func sessionDisconnect(env *Env) *cobra.Command {
	var session string
	var why api.Act
	c := doCommand(env, &cobra.Command{
		Use: "disconnect DEVICE | --session ID", Short: "End live connections on every node; the device keeps what it has and may come back",
		Example: `  countersign session disconnect pump-7 --reason 'to take the new policy'
  countersign session disconnect --session $(countersign session list --device pump-7 --limit 1 -o name)`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: first(deviceIDs(env)),
	}, func(ctx context.Context, args []string) (*api.Disconnected, error) {
		switch {
		case (len(args) == 1) == (session != ""):
			return nil, usagef("name a device, or a session with --session")
		case session != "":
			return env.admin().DisconnectSession(ctx, session, why)
		}
		return env.admin().Disconnect(ctx, args[0], why)
	}, func(p printer, done *api.Disconnected) string {
		if done.Sessions == 0 {
			p.done("no session on this node; those on other nodes end now")
		} else {
			p.done("%s closed in %s; those on other nodes end now", count(done.Sessions, "session"), millis(time.Duration(done.CutMicros)*time.Microsecond))
		}
		p.linef("  it may come back: to keep it out, suspend the device")
		return done.Device
	})
	c.Flags().StringVar(&session, "session", "", "id of one session, as session list -o name prints it")
	reasonFlag(c, &why.Note)
	return c
}
