package command

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
)

func accessTokenCommand(env *Env) *cobra.Command {
	return group("access-token", "Short-lived tokens with which web applications connect to devices", []string{"access-tokens"},
		accessTokenCreate(env), accessTokenList(env), accessTokenRevoke(env))
}

func accessTokenID(t api.AccessToken) string { return t.ID }

func accessTokenCreate(env *Env) *cobra.Command {
	var t api.NewAccessToken
	var ttl time.Duration
	c := &cobra.Command{
		Use: "create DEVICE...", Short: "Make a token for the devices named, all of one fleet; it is shown this once",
		Long:    "Make a token for the devices named. A browser shows it as the MQTT password over WebSocket;\nwhat it may do then is the policy of the fleet, in its statements for apps.",
		Example: "  countersign access-token create pump-1 pump-2 --ttl 15m\n  countersign access-token create pump-1 --read-only -o name",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: deviceIDs(env),
		RunE: func(cmd *cobra.Command, args []string) error {
			t.Devices, t.TTLSeconds = args, int64(ttl/time.Second)
			made, err := env.admin().CreateAccessToken(cmd.Context(), t)
			if err != nil {
				return err
			}
			if env.output == formatTable {
				env.stderr().done("access token %s for %s, good for %s; it is not shown again", made.ID, strings.Join(made.Devices, ", "), span(ttl))
				env.stdout().linef("%s", made.Token)
				return nil
			}
			return show(env, *made, view[api.IssuedAccessToken]{name: func(t api.IssuedAccessToken) string { return t.Token }})
		},
	}
	durationFlag(c.Flags(), &ttl, "ttl", 15*time.Minute, "how long it is good, 1m to 1h")
	c.Flags().BoolVar(&t.ReadOnly, "read-only", false, "it may listen and not publish")
	return c
}

func accessTokenList(env *Env) *cobra.Command {
	return listCommand(env, &cobra.Command{Use: "list", Short: "List the access tokens that are good now"}, (*sdk.Admin).AccessTokens, view[api.AccessToken]{name: accessTokenID, cols: []col[api.AccessToken]{
		{"ID", accessTokenID},
		{"SUBJECT", func(t api.AccessToken) string { return t.Subject }},
		{"FLEET", func(t api.AccessToken) string { return t.Fleet }},
		{"DEVICES", func(t api.AccessToken) string { return strings.Join(t.Devices, " ") }},
		{"MAY", accessTokenRight},
		{"EXPIRES", func(t api.AccessToken) string { return env.until(t.ExpiresAt) }},
	}})
}

func accessTokenRight(t api.AccessToken) string {
	if t.ReadOnly {
		return "listen"
	}
	return "control"
}

func accessTokenRevoke(env *Env) *cobra.Command {
	return actCommand(env, &cobra.Command{Use: "revoke ID", Short: "End an access token and its sessions at once"}, nil, (*sdk.Admin).RevokeAccessToken, func(p printer, t *api.AccessToken) string {
		p.done("access token of %s revoked, its sessions are cut", t.Subject)
		return t.ID
	})
}

func deviceIntroduce(env *Env) *cobra.Command {
	var i api.NewIntroduction
	var ttl time.Duration
	c := &cobra.Command{
		Use: "introduce DEVICE PEER --for PURPOSE", Short: "Sign an introduction of two devices to each other",
		Long:              "Sign an introduction: the authority's word, for a short time, that two devices may speak with\neach other for one purpose. It names both keys, and each device checks it without asking anybody.",
		Example:           "  countersign device introduce pump-1 valve-7 --for modbus --ttl 5m",
		ValidArgsFunction: deviceIDs(env),
		RunE: func(cmd *cobra.Command, args []string) error {
			i.Device, i.Peer, i.TTLSeconds = args[0], args[1], int64(ttl/time.Second)
			made, err := env.admin().Introduce(cmd.Context(), i)
			if err != nil {
				return err
			}
			if env.output == formatTable {
				env.stderr().done("%s and %s are introduced for %s, for %s", i.Device, i.Peer, i.Purpose, span(ttl))
				env.stdout().linef("%s", made.Signed)
				return nil
			}
			return show(env, *made, view[api.SignedIntroduction]{name: func(s api.SignedIntroduction) string { return s.Signed }})
		},
	}
	c.Flags().StringVar(&i.Purpose, "for", "", "what for, in words that both devices understand")
	durationFlag(c.Flags(), &ttl, "ttl", 5*time.Minute, "how long it is good, 10s to 1h")
	return c
}
