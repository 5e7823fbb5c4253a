package command

import (
	"maps"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

func deviceSet(env *Env) *cobra.Command {
	var owner, purpose, fleet string
	var tags map[string]string
	var untag []string
	c := &cobra.Command{
		Use: "set ID", Short: "Change owner, purpose, tags or fleet of a device; what no flag names stays as it is",
		Example: `  countersign device set pump-7 --owner line-2@example.net --tag site=north --untag trial
  countersign device set pump-7 --fleet pumps-2`,
		ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var e api.EditDevice
			for flag, set := range map[string]func(){
				"owner":   func() { e.Owner = &owner },
				"purpose": func() { e.Purpose = &purpose },
				"fleet":   func() { e.Fleet = &fleet },
			} {
				if cmd.Flags().Changed(flag) {
					set()
				}
			}
			e.Tags = map[string]*string{}
			for _, name := range untag {
				e.Tags[name] = nil
			}
			for name, v := range tags {
				e.Tags[name] = &v
			}
			if e.Owner == nil && e.Purpose == nil && e.Fleet == nil && len(e.Tags) == 0 {
				return usagef("nothing to change: name one of --owner, --purpose, --fleet, --tag, --untag")
			}
			d, err := env.admin().EditDevice(cmd.Context(), args[0], e)
			if err != nil {
				return err
			}
			tellEdit(env, d)
			return acted(env, *d, d.ID)
		},
	}
	c.Flags().StringVar(&owner, "owner", "", "person or team that answers for it; empty takes it away")
	c.Flags().StringVar(&purpose, "purpose", "", "what it is for; empty takes it away")
	c.Flags().StringVar(&fleet, "fleet", "", "move it to this fleet")
	c.Flags().StringToStringVar(&tags, "tag", nil, "key=value to set, may be repeated")
	c.Flags().StringSliceVar(&untag, "untag", nil, "key of a tag that is to go, may be repeated")
	completeWith(c, "fleet", fleetNames(env))
	return c
}

// tellEdit tells what changed.
func tellEdit(env *Env, d *api.EditedDevice) {
	p := env.stderr()
	if len(d.Changed) == 0 {
		p.linef("Nothing to change: device %s is so already.", printable(d.ID))
		return
	}
	for _, name := range slices.Sorted(maps.Keys(d.Changed)) {
		if strings.HasSuffix(name, "_before") {
			continue
		}
		was, is := d.Changed[name+"_before"], d.Changed[name]
		switch {
		case was == "":
			p.done("%s: %s", name, is)
		case is == "":
			p.done("%s: no longer %s", name, was)
		default:
			p.done("%s: %s, was %s", name, is, was)
		}
	}
	if before := d.Changed["fleet_before"]; before != "" {
		p.done("%s of this node ended; it may come back at once, by the rules of %s", count(d.Sessions, "session"), d.Fleet)
		p.linef("  its certificate keeps issuer, profile and names of fleet %s until it renews", printable(before))
	}
}
