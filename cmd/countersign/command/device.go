package command

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func deviceCommand(env *Env) *cobra.Command {
	return group("device", "Devices and what may happen to them", []string{"devices"},
		deviceList(env), deviceGet(env), deviceCreate(env), deviceSet(env),
		deviceSuspend(env), deviceReactivate(env), deviceRevoke(env), deviceRetire(env), deviceEvents(env), deviceUsage(env), devicePurge(env), deviceIntroduce(env), secretCommand(env))
}

func deviceView(env *Env) view[api.Device] {
	return view[api.Device]{
		name: func(d api.Device) string { return d.ID },
		cols: []col[api.Device]{
			{"DEVICE", func(d api.Device) string { return d.ID }},
			{"FLEET", func(d api.Device) string { return d.Fleet }},
			{"STATE", func(d api.Device) string { return d.State }},
			{"SEEN", func(d api.Device) string { return env.ago(d.LastSeen) }},
			{"FROM", func(d api.Device) string { return d.LastAddr }},
			{"OWNER", func(d api.Device) string { return d.Owner }},
			{"PURPOSE", func(d api.Device) string { return d.Purpose }},
			{"TAGS", func(d api.Device) string { return tagText(d.Tags) }},
			{"REASON", func(d api.Device) string { return d.Reason }},
		},
	}
}

func tagText(tags map[string]string) string {
	pairs := make([]string, 0, len(tags))
	for k, v := range tags {
		pairs = append(pairs, k+"="+v)
	}
	sort.Strings(pairs)
	return strings.Join(pairs, ",")
}

func deviceList(env *Env) *cobra.Command {
	var f api.DeviceFilter
	c := listCommand(env, &cobra.Command{Use: "list", Short: "List devices"}, filtered((*sdk.Admin).Devices, &f), deviceView(env))
	c.Flags().StringVar(&f.Fleet, "fleet", "", "only this fleet")
	c.Flags().StringVar(&f.State, "state", "", "only this state: registered, pending, active, suspended, retired")
	complete(c, "state", "registered", "pending", "active", "suspended", "retired")
	completeWith(c, "fleet", fleetNames(env))
	return c
}

func deviceGet(env *Env) *cobra.Command {
	return getCommand(env, &cobra.Command{Use: "get ID", Short: "Show one device"}, deviceIDs(env), (*sdk.Admin).Device, deviceView(env))
}

func deviceCreate(env *Env) *cobra.Command {
	var d api.NewDevice
	c := &cobra.Command{
		Use: "create ID", Short: "Register a device before it enrolls",
		RunE: func(cmd *cobra.Command, args []string) error {
			d.ID = args[0]
			made, err := env.admin().CreateDevice(cmd.Context(), d)
			if err != nil {
				return err
			}
			env.stderr().done("device %s registered in fleet %s", made.ID, made.Fleet)
			env.stderr().next("countersign enroll token --device %s", made.ID)
			return acted(env, *made, made.ID)
		},
	}
	c.Flags().StringVar(&d.Fleet, "fleet", "", "its fleet (default \"default\")")
	c.Flags().StringVar(&d.Owner, "owner", "", "person or team that answers for it")
	c.Flags().StringVar(&d.Purpose, "purpose", "", "what it is for")
	c.Flags().StringToStringVar(&d.Tags, "tag", nil, "key=value, may be repeated")
	completeWith(c, "fleet", fleetNames(env))
	return c
}

func deviceSuspend(env *Env) *cobra.Command {
	var why string
	var yes bool
	c := &cobra.Command{
		Use: "suspend ID --reason TEXT", Short: "Put a device on hold: its sessions end, its certificates are held",
		Example:           "  countersign device suspend pump-7 --reason 'seen in two places' --yes",
		ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if why == "" {
				return usagef("--reason is missing: say why")
			}
			if err := env.confirm(yes, fmt.Sprintf("Suspend %s? Its sessions end now; reactivate undoes it.", args[0])); err != nil {
				return err
			}
			cut, err := env.admin().Suspend(cmd.Context(), args[0], api.Act{Note: why})
			if err != nil {
				return err
			}
			p := env.stderr()
			p.done("device %s %s", cut.Device, was(cut.Already, "suspended", cut.At))
			tellCut(env, cut, "held")
			p.linef("  undo: countersign device reactivate %s", cut.Device)
			return acted(env, *cut, cut.Device)
		},
	}
	c.Flags().StringVar(&why, "reason", "", "why, in your words")
	yesFlag(c, &yes)
	return c
}

func deviceReactivate(env *Env) *cobra.Command {
	var why string
	var yes bool // it does not ask, but scripts give the same flag to all commands of a device's life
	c := &cobra.Command{
		Use: "reactivate ID", Short: "End a suspension", ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := env.admin().Reactivate(cmd.Context(), args[0], api.Act{Note: why})
			if err != nil {
				return err
			}
			env.stderr().done("device %s is %s again", d.ID, d.State)
			env.stderr().next("countersign device events %s", d.ID)
			return acted(env, *d, d.ID)
		},
	}
	c.Flags().StringVar(&why, "reason", "", "why, in your words")
	yesFlag(c, &yes)
	return c
}

func deviceRevoke(env *Env) *cobra.Command {
	var r api.Revoke
	var yes bool
	c := &cobra.Command{
		Use: "revoke ID --reason REASON", Short: "Take all certificates of a device away, for good, and end its sessions",
		Example:           "  countersign device revoke pump-7 --reason keyCompromise --note 'found in a bin' --yes",
		ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.Reason == "" {
				return usagef("--reason is missing: one of %s", strings.Join(reasons, ", "))
			}
			if err := env.confirm(yes, fmt.Sprintf("Revoke all certificates of %s? This cannot be undone.", args[0])); err != nil {
				return err
			}
			cut, err := env.admin().Revoke(cmd.Context(), args[0], r)
			if err != nil {
				return err
			}
			if cut.Already {
				env.stderr().done("device %s %s", cut.Device, was(cut.Already, "revoked for "+cut.Reason, cut.At))
			}
			tellCut(env, cut, "revoked")
			env.stderr().linef("  undo: none. To let the device back: countersign enroll token --device %s", cut.Device)
			return acted(env, *cut, cut.Device)
		},
	}
	revokeFlags(c, &r, &yes)
	return c
}

func deviceRetire(env *Env) *cobra.Command {
	var why string
	var yes bool
	c := &cobra.Command{
		Use: "retire ID", Short: "End a device's life: revoke, and keep its id from being used again",
		ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := env.confirm(yes, fmt.Sprintf("Retire %s? Its certificates are revoked. This cannot be undone.", args[0])); err != nil {
				return err
			}
			cut, err := env.admin().Retire(cmd.Context(), args[0], api.Act{Note: why})
			if err != nil {
				return err
			}
			env.stderr().done("device %s %s", cut.Device, was(cut.Already, "retired", cut.At))
			tellCut(env, cut, "revoked")
			env.stderr().linef("  undo: none. The id %s stays taken", cut.Device)
			return acted(env, *cut, cut.Device)
		},
	}
	c.Flags().StringVar(&why, "reason", "", "why, in your words")
	yesFlag(c, &yes)
	return c
}

// reasons are those that an operator may give (RFC 5280, 5.3.1).
var reasons = []string{
	"keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation", "privilegeWithdrawn", "unspecified",
}

func revokeFlags(c *cobra.Command, r *api.Revoke, yes *bool) {
	c.Flags().StringVar(&r.Reason, "reason", "", strings.Join(reasons, ", "))
	c.Flags().StringVar(&r.Note, "note", "", "why, in your words")
	complete(c, "reason", reasons...)
	yesFlag(c, yes)
}

// tellCut tells what an act took away; did is the word for the certificates.
func tellCut(env *Env, cut *api.Cut, did string) {
	p := env.stderr()
	for _, c := range cut.Certificates {
		if cut.Already {
			continue // as it was
		}
		if cut.Reason != "" {
			p.done("certificate %s %s (%s)", short(c.Serial), did, cut.Reason)
		} else {
			p.done("certificate %s %s", short(c.Serial), did)
		}
	}
	if cut.Raised {
		p.linef("  revoked before for a reason that is less grave: it is %s now, in the next CRL and OCSP answer too", cut.Reason)
	}
	if len(cut.Certificates) == 0 && !cut.Already {
		p.done("no certificate to be %s", did)
	}
	switch took := time.Duration(cut.CutMicros) * time.Microsecond; cut.Sessions {
	case 0:
		p.done("no live session")
	case 1:
		p.done("1 session closed in %s", millis(took))
	default:
		p.done("%d sessions closed in %s", cut.Sessions, millis(took))
	}
	for _, l := range cut.CRLs {
		p.done("CRL #%d of %s published, OCSP answers %s", l.Number, l.Issuer, "revoked")
	}
}

// was is what became of a device, or what had become of it before.
func was(already bool, what string, at time.Time) string {
	if already {
		return "was " + what + " already, since " + at.UTC().Format(time.RFC3339)
	}
	return what
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

func deviceEvents(env *Env) *cobra.Command {
	var last int
	c := &cobra.Command{
		Use: "events ID", Short: "Tell a device's whole story, oldest first", ValidArgsFunction: first(deviceIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			seq := env.paged(last).DeviceEvents(cmd.Context(), args[0], api.Order{Order: orderFor(last)})
			return list(env, newest(seq, last), last, eventView(env, false))
		},
	}
	lastFlag(c, &last)
	return c
}
