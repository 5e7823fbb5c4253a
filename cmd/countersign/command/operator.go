package command

import (
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

var roles = []string{"viewer", "auditor", "factory", "approver", "operator", "admin"}

func operatorCommand(env *Env) *cobra.Command {
	return group("operator", "Operators that come in over the network", []string{"operators"},
		operatorToken(env),
		listCommand(env, &cobra.Command{Use: "list", Short: "List operator tokens, without their secrets"}, all((*sdk.Admin).OperatorTokens), viewOf[api.OperatorToken](env, "ID id, NAME name, ROLE role, STATE, EXPIRES until:expires_at, USED used_at", func(t api.OperatorToken) string { return tokenState(env, t) })), operatorRevoke(env))
}

func operatorToken(env *Env) *cobra.Command {
	var t api.NewOperatorToken
	var ttl time.Duration
	c := &cobra.Command{
		Use: "token NAME --role ROLE", Short: "Make an operator token for the API; it is shown this once",
		Example: "  countersign operator token grafana --role viewer --ttl 720h -o name > token.txt",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("--role", t.Role, roles...); err != nil {
				return err
			}
			t.Name, t.TTLSeconds = args[0], int64(ttl/time.Second)
			made, err := env.admin().CreateOperatorToken(cmd.Context(), t)
			if err != nil {
				return err
			}
			return shown(env, *made, made.Secret, "token for %s as %s, good for %s; it is not shown again", made.Name, made.Role, span(ttl))
		},
	}
	c.Flags().StringVar(&t.Role, "role", "", "viewer, auditor, factory, approver, operator or admin")
	durationFlag(c.Flags(), &ttl, "ttl", 24*time.Hour, "how long it is good")
	complete(c, "role", roles...)
	return c
}

func tokenState(env *Env, t api.OperatorToken) string {
	switch {
	case t.Revoked:
		return "revoked"
	case !env.Now().Before(t.ExpiresAt):
		return "expired"
	}
	return "active"
}

func operatorRevoke(env *Env) *cobra.Command {
	c := actCommand(env, &cobra.Command{Use: "revoke ID", Short: "End an operator token at once"}, nil, (*sdk.Admin).RevokeOperatorToken, func(p printer, t *api.OperatorToken) string {
		p.done("operator token of %s revoked", t.Name)
		return t.ID
	})
	return asking(env, c, func(args []string) string { return "Revoke operator token " + args[0] + "? This cannot be undone." })
}
