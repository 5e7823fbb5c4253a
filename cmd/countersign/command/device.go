package command

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func deviceCommand(env *Env) *cobra.Command {
	return group("device", "Devices and what may happen to them", []string{"devices"},
		deviceList(env),
		getCommand(env, &cobra.Command{Use: "get ID", Short: "Show one device"}, deviceIDs(env), (*sdk.Admin).Device, deviceView(env)), deviceCreate(env), deviceSet(env),
		deviceSuspend(env), deviceReactivate(env), deviceRevoke(env), deviceRetire(env), deviceEvents(env),
		listCommand(env, &cobra.Command{
			Use: "usage [ID]", Short: "Show what devices use of the node's message store, the most octets first",
			Args: cobra.MaximumNArgs(1), ValidArgsFunction: first(deviceIDs(env)),
		}, func(admin *sdk.Admin, ctx context.Context, args []string) iter.Seq2[api.Usage, error] {
			return admin.Usage(ctx, api.UsageFilter{Device: strings.Join(args, "")})
		}, viewOf[api.Usage](env, "DEVICE device, OCTETS octets:octets, RETAINED retained, QUEUED queued, FILTERS subscriptions, LIVE sessions, KEPT kept")), devicePurge(env), deviceIntroduce(env), secretCommand(env))
}

func deviceView(env *Env) view[api.Device] {
	return viewOf[api.Device](env, "DEVICE id, FLEET fleet, STATE state, SEEN last_seen, FROM last_addr, OWNER owner, PURPOSE purpose, TAGS tags, REASON reason")
}

func deviceList(env *Env) *cobra.Command {
	var f api.DeviceFilter
	c := listCommand(env, &cobra.Command{Use: "list", Short: "List devices"}, filtered((*sdk.Admin).Devices, &f), deviceView(env))
	fleetFlag(env, c, &f.Fleet, "only this fleet")
	choiceFlag(c, &f.State, "state", "only this state", "registered", "pending", "active", "suspended", "retired")
	return c
}

func deviceCreate(env *Env) *cobra.Command {
	var d api.NewDevice
	c := doCommand(env, &cobra.Command{Use: "create ID", Short: "Register a device before it enrolls"}, func(ctx context.Context, args []string) (*api.Device, error) {
		d.ID = args[0]
		return env.admin().CreateDevice(ctx, d)
	}, func(p printer, made *api.Device) string {
		p.done("device %s registered in fleet %s", made.ID, made.Fleet)
		p.next("countersign enroll token --device %s", made.ID)
		return made.ID
	})
	fleetFlag(env, c, &d.Fleet, "its fleet (default \"default\")")
	c.Flags().StringVar(&d.Owner, "owner", "", "person or team that answers for it")
	c.Flags().StringVar(&d.Purpose, "purpose", "", "what it is for")
	c.Flags().StringToStringVar(&d.Tags, "tag", nil, "key=value, may be repeated")
	return c
}

func deviceSuspend(env *Env) *cobra.Command {
	var why api.Act
	c := actCommand(env, &cobra.Command{
		Use: "suspend ID --reason TEXT", Short: "Put a device on hold: its sessions end, its certificates are held",
		Example: "  countersign device suspend pump-7 --reason 'seen in two places' --yes",
	}, deviceIDs(env), with((*sdk.Admin).Suspend, &why), func(p printer, cut *api.Cut) string {
		p.done("device %s %s", cut.Device, was(cut.Already, "suspended", cut.At))
		printCut(env, cut, "held")
		p.linef("  undo: countersign device reactivate %s", cut.Device)
		return cut.Device
	})
	reasonFlag(c, &why.Note)
	needsReason(c, ": say why")
	return asking(env, c, func(args []string) string {
		return fmt.Sprintf("Suspend %s? Its sessions end now; reactivate undoes it.", args[0])
	})
}

func deviceReactivate(env *Env) *cobra.Command {
	var why api.Act
	var yes bool // it does not ask, but scripts give the same flag to all commands of a device's life
	c := actCommand(env, &cobra.Command{Use: "reactivate ID", Short: "End a suspension"}, deviceIDs(env), with((*sdk.Admin).Reactivate, &why), func(p printer, d *api.Device) string {
		p.done("device %s is %s again", d.ID, d.State)
		p.next("countersign device events %s", d.ID)
		return d.ID
	})
	reasonFlag(c, &why.Note)
	yesFlag(c, &yes)
	return c
}

func deviceRevoke(env *Env) *cobra.Command {
	var r api.Revoke
	c := actCommand(env, &cobra.Command{
		Use: "revoke ID --reason REASON", Short: "Take all certificates of a device away, for good, and end its sessions",
		Example: "  countersign device revoke pump-7 --reason keyCompromise --note 'found in a bin' --yes",
	}, deviceIDs(env), with((*sdk.Admin).Revoke, &r), func(p printer, cut *api.Cut) string {
		if cut.Already {
			p.done("device %s %s", cut.Device, was(cut.Already, "revoked for "+cut.Reason, cut.At))
		}
		printCut(env, cut, "revoked")
		p.linef("  undo: none. To let the device back: countersign enroll token --device %s", cut.Device)
		return cut.Device
	})
	revokeFlags(c, &r)
	needsReason(c, ": one of "+strings.Join(reasons, ", "))
	return asking(env, c, func(args []string) string {
		return fmt.Sprintf("Revoke all certificates of %s? This cannot be undone.", args[0])
	})
}

func deviceRetire(env *Env) *cobra.Command {
	var why api.Act
	c := actCommand(env, &cobra.Command{
		Use: "retire ID", Short: "End a device's life: revoke, and keep its id from being used again",
	}, deviceIDs(env), with((*sdk.Admin).Retire, &why), func(p printer, cut *api.Cut) string {
		p.done("device %s %s", cut.Device, was(cut.Already, "retired", cut.At))
		printCut(env, cut, "revoked")
		p.linef("  undo: none. The id %s stays taken", cut.Device)
		return cut.Device
	})
	reasonFlag(c, &why.Note)
	return asking(env, c, func(args []string) string {
		return fmt.Sprintf("Retire %s? Its certificates are revoked. This cannot be undone.", args[0])
	})
}

func deviceEvents(env *Env) *cobra.Command {
	var last int
	c := &cobra.Command{
		Use: "events ID", Short: "Tell a device's whole story, oldest first", ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			seq := env.paged(last).DeviceEvents(cmd.Context(), args[0], orderFor(last))
			return list(env, newest(seq, last), last, eventView(env, ""))
		},
	}
	lastFlag(c, &last)
	return c
}

func deviceSet(env *Env) *cobra.Command {
	var owner, purpose, fleet string
	var tags map[string]string
	var untag []string
	c := &cobra.Command{
		Use: "set ID", Short: "Change owner, purpose, tags or fleet of a device; what no flag names stays as it is",
		Example: `  countersign device set pump-7 --owner line-2@example.net --tag site=north --untag trial
  countersign device set pump-7 --fleet pumps-2`,
		ValidArgsFunction: first(deviceIDs(env)),
	}
	doCommand(env, c, func(ctx context.Context, args []string) (*api.EditedDevice, error) {
		e := api.EditDevice{
			Owner: changed(c, "owner", &owner), Purpose: changed(c, "purpose", &purpose), Fleet: changed(c, "fleet", &fleet), Tags: map[string]*string{},
		}
		for _, name := range untag {
			e.Tags[name] = nil
		}
		for name, v := range tags {
			e.Tags[name] = &v
		}
		if e.Owner == nil && e.Purpose == nil && e.Fleet == nil && len(e.Tags) == 0 {
			return nil, usagef("nothing to change: name one of --owner, --purpose, --fleet, --tag, --untag")
		}
		return env.admin().EditDevice(ctx, args[0], e)
	}, printEdit)
	c.Flags().StringVar(&owner, "owner", "", "person or team that answers for it; empty takes it away")
	c.Flags().StringVar(&purpose, "purpose", "", "what it is for; empty takes it away")
	fleetFlag(env, c, &fleet, "move it to this fleet")
	c.Flags().StringToStringVar(&tags, "tag", nil, "key=value to set, may be repeated")
	c.Flags().StringSliceVar(&untag, "untag", nil, "key of a tag that is to go, may be repeated")
	return c
}

// printEdit prints what changed and returns the id of the device.
func printEdit(p printer, d *api.EditedDevice) string {
	if len(d.Changed) == 0 {
		p.linef("Nothing to change: device %s is so already.", printable(d.ID))
		return d.ID
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
	return d.ID
}

func devicePurge(env *Env) *cobra.Command {
	var p api.Purge
	all := func() api.Purge {
		if !p.Retained && !p.Queued && !p.Sessions {
			p.Retained, p.Queued, p.Sessions = true, true, true
		}
		return p
	}
	c := actCommand(env, &cobra.Command{
		Use: "purge ID", Short: "Drop what the node stores for a device: retained and queued messages, kept sessions",
		Long: `Drop what the node that answers stores for a device. Without --retained, --queued and
--sessions it drops all three. Live sessions go on, and the device may store anew: to
keep it out, suspend it.`,
		Example: `  countersign device usage
  countersign device purge pump-7 --retained --reason 'filled the store'`,
	}, deviceIDs(env), func(admin *sdk.Admin, ctx context.Context, id string) (*api.Purged, error) {
		return admin.Purge(ctx, id, all())
	}, func(o printer, done *api.Purged) string {
		o.done("dropped %s (%s), %s, %s", count(done.Retained, "retained message"), octets(done.RetainedOctets),
			count(done.Queued, "queued message"), count(done.Sessions, "kept session"))
		o.linef("  it may store anew: to keep it out, suspend the device")
		return done.Device
	})
	c.Flags().BoolVar(&p.Retained, "retained", false, "retained messages that it sent")
	c.Flags().BoolVar(&p.Queued, "queued", false, "messages that wait for it")
	c.Flags().BoolVar(&p.Sessions, "sessions", false, "sessions that wait for their client, with their queues")
	reasonFlag(c, &p.Note)
	return asking(env, c, func(args []string) string {
		what := countersign.Stored{Retained: all().Retained, Queued: p.Queued, Sessions: p.Sessions}
		return fmt.Sprintf("Drop what is stored for %s (%s)? This cannot be undone.", args[0], what)
	})
}

func deviceIntroduce(env *Env) *cobra.Command {
	var i api.NewIntroduction
	var ttl time.Duration
	c := &cobra.Command{
		Use: "introduce DEVICE PEER --for PURPOSE", Short: "Sign an introduction of two devices to each other",
		Long:              "Sign an introduction: the authority's word, for a short time, that two devices may speak with\neach other for one purpose. It names both keys, and each device checks it without a request.",
		Example:           "  countersign device introduce pump-1 valve-7 --for modbus --ttl 5m",
		ValidArgsFunction: deviceIDs(env),
		RunE: func(cmd *cobra.Command, args []string) error {
			i.Device, i.Peer, i.TTLSeconds = args[0], args[1], int64(ttl/time.Second)
			made, err := env.admin().Introduce(cmd.Context(), i)
			if err != nil {
				return err
			}
			return shown(env, *made, made.Signed, "%s and %s are introduced for %s, for %s", i.Device, i.Peer, i.Purpose, span(ttl))
		},
	}
	c.Flags().StringVar(&i.Purpose, "for", "", "what for, in words that both devices understand")
	durationFlag(c.Flags(), &ttl, "ttl", 5*time.Minute, "how long it is good, 10s to 1h")
	return c
}
