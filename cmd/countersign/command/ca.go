package command

import (
	"fmt"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func caCommand(env *Env) *cobra.Command {
	return group("ca", "Certification authorities", []string{"authority", "authorities"},
		caList(env), caGet(env), caExport(env), caRegisterCode(env), caRegister(env), caSetCRL(env))
}

func caView(env *Env, whole bool) view[api.Authority] {
	id := func(c api.Authority) string { return c.ID }
	v := view[api.Authority]{name: id, cols: []col[api.Authority]{
		{"ID", id},
		{"KIND", func(c api.Authority) string { return c.Kind }},
		{"PARENT", func(c api.Authority) string { return c.Parent }},
		{"STATE", func(c api.Authority) string { return c.State }},
		{"EXPIRES", func(c api.Authority) string { return env.until(c.NotAfter) }},
		{"SUBJECT", func(c api.Authority) string { return c.Subject }},
	}}
	if whole {
		v.cols = append(v.cols,
			col[api.Authority]{"KEY", func(c api.Authority) string { return c.KeyURI }},
			col[api.Authority]{"SERIAL", func(c api.Authority) string { return colons(c.Serial) }},
			col[api.Authority]{"SHA-256", func(c api.Authority) string { return colons(c.Fingerprint) }},
		)
	}
	return v
}

func caList(env *Env) *cobra.Command {
	return listCommand(env, &cobra.Command{Use: "list", Short: "List authorities"}, (*sdk.Admin).Authorities, caView(env, false))
}

func caGet(env *Env) *cobra.Command {
	return getCommand(env, &cobra.Command{Use: "get ID", Short: "Show one authority"}, authorityIDs(env), (*sdk.Admin).Authority, caView(env, true))
}

func caExport(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "export [ID]", Short: "Print an authority's certificate as PEM; without an id, all roots",
		Example: "  countersign ca export > roots.pem",
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: first(authorityIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				c, err := env.admin().Authority(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				_, err = fmt.Fprint(env.Out, c.PEM)
				return err
			}
			for c, err := range env.admin().Authorities(cmd.Context()) {
				if err != nil {
					return err
				}
				if c.Kind != "root" || c.State != "active" {
					continue
				}
				if _, err := fmt.Fprint(env.Out, c.PEM); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
