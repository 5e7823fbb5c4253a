package command

import (
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/rest"
	"github.com/spf13/cobra"
)

func versionCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Say what this program is",
		RunE: func(*cobra.Command, []string) error {
			version := func(v api.Version) string { return v.Version }
			return show(env, rest.Version(), view[api.Version]{name: version, cols: []col[api.Version]{
				{"VERSION", version},
				{"REVISION", func(v api.Version) string { return v.Revision }},
				{"GO", func(v api.Version) string { return v.Go }},
			}})
		},
	}
}
