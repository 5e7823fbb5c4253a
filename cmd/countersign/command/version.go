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
			return show(env, rest.Version(), viewOf[api.Version](env, "VERSION version, REVISION revision, GO go"))
		},
	}
}
