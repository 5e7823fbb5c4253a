package main

import (
	"fmt"

	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

func (a *app) caCommand() *cobra.Command {
	return group("ca", "Certification authorities", []string{"authority", "authorities"},
		a.caList(), a.caGet(), a.caExport(), a.caRegisterCode(), a.caRegister(), a.caSetCRL())
}

func (a *app) caView(whole bool) view[api.Authority] {
	id := func(c api.Authority) string { return c.ID }
	v := view[api.Authority]{name: id, cols: []col[api.Authority]{
		{"ID", id},
		{"KIND", func(c api.Authority) string { return c.Kind }},
		{"PARENT", func(c api.Authority) string { return c.Parent }},
		{"STATE", func(c api.Authority) string { return c.State }},
		{"EXPIRES", func(c api.Authority) string { return a.until(c.NotAfter) }},
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

func (a *app) caList() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List authorities", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(a, a.paged(limit).Authorities(cmd.Context()), limit, a.caView(false))
		},
	}
	limitFlag(c, &limit)
	return c
}

func (a *app) caGet() *cobra.Command {
	return &cobra.Command{
		Use: "get ID", Short: "Show one authority", Args: exactly("ID"), ValidArgsFunction: first(a.authorityIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.admin().Authority(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return show(a, *c, a.caView(true))
		},
	}
}

func (a *app) caExport() *cobra.Command {
	return &cobra.Command{
		Use: "export [ID]", Short: "Print an authority's certificate as PEM; without an id, all roots",
		Example: "  countersign ca export > roots.pem",
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: first(a.authorityIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				c, err := a.admin().Authority(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				_, err = fmt.Fprint(a.out, c.PEM)
				return err
			}
			for c, err := range a.admin().Authorities(cmd.Context()) {
				if err != nil {
					return err
				}
				if c.Kind != "root" || c.State != "active" {
					continue
				}
				if _, err := fmt.Fprint(a.out, c.PEM); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
