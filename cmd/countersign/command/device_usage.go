package command

import (
	"fmt"
	"strconv"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

func deviceUsage(env *Env) *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "usage [ID]", Short: "Show what devices use of the node's message store, the most octets first",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var f api.UsageFilter
			if len(args) == 1 {
				f.Device = args[0]
			}
			number := func(of func(api.Usage) int) func(api.Usage) string {
				return func(u api.Usage) string { return strconv.Itoa(of(u)) }
			}
			return list(env, env.paged(limit).Usage(cmd.Context(), f), limit, view[api.Usage]{
				name: func(u api.Usage) string { return u.Device },
				cols: []col[api.Usage]{
					{"DEVICE", func(u api.Usage) string { return u.Device }},
					{"OCTETS", func(u api.Usage) string { return octets(u.Octets) }},
					{"RETAINED", number(func(u api.Usage) int { return u.Retained })},
					{"QUEUED", number(func(u api.Usage) int { return u.Queued })},
					{"FILTERS", number(func(u api.Usage) int { return u.Subscriptions })},
					{"LIVE", number(func(u api.Usage) int { return u.Sessions })},
					{"KEPT", number(func(u api.Usage) int { return u.Kept })},
				},
			})
		},
	}
	limitFlag(c, &limit)
	return c
}

func devicePurge(env *Env) *cobra.Command {
	var p api.Purge
	var yes bool
	c := &cobra.Command{
		Use: "purge ID", Short: "Drop what the node stores for a device: retained and queued messages, kept sessions",
		Long: `Drop what the node that answers stores for a device. Without --retained, --queued and
--sessions it drops all three. Live sessions go on, and the device may store anew: to
keep it out, suspend it.`,
		Example: `  countersign device usage
  countersign device purge pump-7 --retained --reason 'filled the store'`,
		ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !p.Retained && !p.Queued && !p.Sessions {
				p.Retained, p.Queued, p.Sessions = true, true, true
			}
			what := countersign.Stored{Retained: p.Retained, Queued: p.Queued, Sessions: p.Sessions}
			if err := env.confirm(yes, fmt.Sprintf("Drop what is stored for %s (%s)? This cannot be undone.", args[0], what)); err != nil {
				return err
			}
			done, err := env.admin().Purge(cmd.Context(), args[0], p)
			if err != nil {
				return err
			}
			o := env.stderr()
			o.done("dropped %s (%s), %s, %s", count(done.Retained, "retained message"), octets(done.RetainedOctets),
				count(done.Queued, "queued message"), count(done.Sessions, "kept session"))
			o.linef("  it may store anew: to keep it out, suspend the device")
			return acted(env, *done, done.Device)
		},
	}
	c.Flags().BoolVar(&p.Retained, "retained", false, "retained messages that it sent")
	c.Flags().BoolVar(&p.Queued, "queued", false, "messages that wait for it")
	c.Flags().BoolVar(&p.Sessions, "sessions", false, "sessions that wait for their client, with their queues")
	c.Flags().StringVar(&p.Note, "reason", "", "why, in your words")
	yesFlag(c, &yes)
	return c
}

// octets writes a size in the largest binary unit of which it has one.
func octets(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
