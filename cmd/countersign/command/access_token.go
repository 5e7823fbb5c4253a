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
		accessTokenCreate(env),
		listCommand(env, &cobra.Command{Use: "list", Short: "List the access tokens that are valid now"}, all((*sdk.Admin).AccessTokens), viewOf[api.AccessToken](env, "ID id, SUBJECT subject, FLEET fleet, DEVICES words:devices, MAY listen|control:read_only, EXPIRES until:expires_at")),
		actCommand(env, &cobra.Command{Use: "revoke ID", Short: "End an access token and its sessions at once"}, nil, (*sdk.Admin).RevokeAccessToken, func(p printer, t *api.AccessToken) string {
			p.done("access token of %s revoked, its sessions are cut", t.Subject)
			return t.ID
		}))
}

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
			return shown(env, *made, made.Token, "access token %s for %s, good for %s; it is not shown again", made.ID, strings.Join(made.Devices, ", "), span(ttl))
		},
	}
	durationFlag(c.Flags(), &ttl, "ttl", 15*time.Minute, "how long it is good, 1m to 1h")
	c.Flags().BoolVar(&t.ReadOnly, "read-only", false, "it may listen and not publish")
	return c
}
