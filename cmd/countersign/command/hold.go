package command

import (
	"fmt"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func holdCommand(env *Env) *cobra.Command {
	return group("hold", "Devices that this node refuses although the database could not record it", []string{"holds"},
		listCommand(env, &cobra.Command{Use: "list", Short: "List the emergency holds of this node"}, all((*sdk.Admin).Holds), viewOf[api.Hold](env, "ID id, DEVICE device, ACT act, STATE state, SINCE at, BY by, LAST ERROR error")),
		actCommand(env, &cobra.Command{Use: "retry ID", Short: "Record the act of an emergency hold now"}, holdIDs(env), (*sdk.Admin).RetryHold, func(p printer, h *api.Hold) string {
			p.done("the %s of %s is on record", h.Act, h.Device)
			return h.ID
		}),
		holdDrop(env))
}

func holdDrop(env *Env) *cobra.Command {
	c := actCommand(env, &cobra.Command{Use: "drop ID", Short: "End an emergency hold without recording its act"}, holdIDs(env), (*sdk.Admin).DropHold, func(p printer, h *api.Hold) string {
		p.done("the hold on %s is dropped: its %s is not recorded", h.Device, h.Act)
		return h.ID
	})
	return asking(env, c, func(args []string) string {
		return fmt.Sprintf("Drop hold %s? Its device may come back, and nothing was taken away from it.", args[0])
	})
}
