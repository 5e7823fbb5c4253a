package command

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func alertCommand(env *Env) *cobra.Command {
	return group("alert", "What was found and wants a person", []string{"alerts"},
		alertList(env), alertShow(env), alertAck(env), alertAssign(env),
		doCommand(env, &cobra.Command{
			Use: "comment ID TEXT", Short: "Say something about an alert", ValidArgsFunction: first(alertIDs(env)),
		}, func(ctx context.Context, args []string) (*api.Alert, error) {
			return env.admin().CommentAlert(ctx, args[0], api.AlertNote{Note: args[1]})
		}, func(p printer, v *api.Alert) string {
			p.done("said")
			return v.ID
		}),
		alertSnooze(env), alertClose(env), alertAct(env),
		listCommand(env, &cobra.Command{Use: "rules", Short: "List what can be found, why it matters and what to do"}, all((*sdk.Admin).AlertRules), viewOf[api.AlertRule](env, "RULE name, SEVERITY severity, BY DEFAULT default, SEES title")),
		listCommand(env, &cobra.Command{Use: "channels", Short: "List the channels by which alerts are sent"}, all((*sdk.Admin).Channels), viewOf[api.Channel](env, "CHANNEL name, KIND kind, FROM SEVERITY severity, FLEETS fleets, WAITING waiting, DELIVERED delivered, ERROR error")), alertTest(env))
}

func alertList(env *Env) *cobra.Command {
	var f api.AlertFilter
	var closed bool
	c := listCommand(env, &cobra.Command{
		Use: "list", Short: "List alerts that are not closed",
		Example: `  countersign alert list --severity high
  countersign alert list --all --device pump-7`,
		PreRun: func(*cobra.Command, []string) {
			if f.State == "" && !closed {
				f.State = "live"
			}
		},
	}, filtered((*sdk.Admin).Alerts, &f), viewOf[api.Alert](env, "ALERT id, SEVERITY severity, STATE state, RULE rule, SUBJECT subject, COUNT count, LAST last_seen, WHO assignee, SUMMARY summary"))
	c.Flags().BoolVar(&closed, "all", false, "closed ones too")
	choiceFlag(c, &f.State, "state", "only this state", "open", "acknowledged", "snoozed", "closed")
	choiceFlag(c, &f.Severity, "severity", "only this severity", severityNames()...)
	c.Flags().StringVar(&f.Rule, "rule", "", "only this rule")
	fleetFlag(env, c, &f.Fleet, "only this fleet")
	deviceFlag(env, c, &f.Device, "only this device")
	completeWith(c, "rule", alertRuleNames(env))
	return c
}

func alertShow(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Aliases: []string{"get"}, Short: "Show an alert: its evidence, what was done, and what each act would do now",
		ValidArgsFunction: first(alertIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := env.admin().Alert(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if env.output != formatTable {
				return show(env, *v, view[api.Alert]{name: func(v api.Alert) string { return v.ID }})
			}
			acts, err := env.admin().AlertActions(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printAlert(env, v, acts.Items)
		},
	}
}

// printAlert prints an alert for a person.
func printAlert(env *Env, v *api.Alert, acts []api.AlertAction) error {
	err := show(env, *v, viewOf(env, "ALERT id, SUMMARY summary, RULE rule, SEVERITY severity, STATE, SUBJECT subject, FLEET fleet, FROM remote, "+
		"FINDINGS, ASSIGNEE assignee, WHY IT MATTERS why, WHAT TO DO do", alertState, func(v api.Alert) string {
		return fmt.Sprintf("%d, the last %s", v.Count, env.ago(v.LastSeen))
	}))
	if err != nil {
		return err
	}
	p := env.stdout()
	p.linef("\nevidence")
	for _, f := range v.Evidence {
		p.linef("  %s  %s", f.At.Format(time.RFC3339), printable(f.Summary))
		if len(f.Evidence) > 0 {
			p.linef("    %s", printable(tagText(f.Evidence)))
		}
	}
	p.linef("\ntimeline")
	for _, l := range v.Timeline {
		p.linef("  %s  %s %s %s: %s", l.At.Format(time.RFC3339), printable(l.Actor), printable(l.Act), l.Outcome, printable(l.Text))
	}
	p.linef("\nwhat can be done now: countersign alert act %s ACT", v.ID)
	for _, x := range acts {
		mark := p.green("yes")
		if !x.Possible {
			mark = p.yellow("no ")
		}
		p.linef("  %s  %-11s %s", mark, x.Name, printable(x.Effect))
		if x.Undo != "" {
			p.linef("       undone by %s", printable(x.Undo))
		}
	}
	return nil
}

func alertState(v api.Alert) string {
	switch {
	case v.Resolution != "":
		return v.State + ", " + v.Resolution
	case !v.SnoozedUntil.IsZero():
		return v.State + " until " + v.SnoozedUntil.Format(time.RFC3339)
	}
	return v.State
}

// alertVerb is a command that does one thing to an alert.
func alertVerb(env *Env, c *cobra.Command, do func(admin *sdk.Admin, ctx context.Context, id string) (*api.Alert, error)) *cobra.Command {
	return actCommand(env, c, alertIDs(env), do, func(p printer, v *api.Alert) string {
		p.done("alert %s is %s", v.ID, alertState(*v))
		return v.ID
	})
}

func alertAck(env *Env) *cobra.Command {
	var n api.AlertNote
	c := alertVerb(env, &cobra.Command{
		Use: "ack ID", Aliases: []string{"acknowledge"}, Short: "Say that you are at it: it is sent again only if it gets worse",
	}, with((*sdk.Admin).AcknowledgeAlert, &n))
	noteFlag(c, &n.Note)
	return c
}

func alertAssign(env *Env) *cobra.Command {
	var to api.AlertAssign
	c := alertVerb(env, &cobra.Command{
		Use: "assign ID", Short: "Give an alert to an operator",
		Example: "  countersign alert assign 4XK7Q2M3ZPT5A --to ana",
	}, with((*sdk.Admin).AssignAlert, &to))
	c.Flags().StringVar(&to.To, "to", "", "name of the operator; empty: none")
	noteFlag(c, &to.Note)
	return c
}

func alertSnooze(env *Env) *cobra.Command {
	var s api.AlertSnooze
	var length time.Duration
	c := alertVerb(env, &cobra.Command{
		Use: "snooze ID", Short: "Silence an alert for a time: it goes on to count, and is neither sent nor acted on",
		Example: "  countersign alert snooze 4XK7Q2M3ZPT5A --for 24h --note 'the line is being rebuilt'",
		PreRun:  func(*cobra.Command, []string) { s.Seconds = int64(length / time.Second) },
	}, with((*sdk.Admin).SnoozeAlert, &s))
	durationFlag(c.Flags(), &length, "for", 8*time.Hour, "for how long, 1m to 2160h")
	noteFlag(c, &s.Note)
	return c
}

func alertClose(env *Env) *cobra.Command {
	end := api.AlertClose{Resolution: "resolved"}
	var falseAlarm bool
	c := alertVerb(env, &cobra.Command{
		Use: "close ID --reason TEXT", Short: "End an alert; a later finding opens a new one",
		Example: `  countersign alert close 4XK7Q2M3ZPT5A --reason 'unit replaced'
  countersign alert close 4XK7Q2M3ZPT5A --reason 'new mobile operator' --not-an-issue`,
	}, func(admin *sdk.Admin, ctx context.Context, id string) (*api.Alert, error) {
		if falseAlarm {
			end.Resolution = "not_an_issue"
		}
		return admin.CloseAlert(ctx, id, end)
	})
	reasonFlag(c, &end.Note)
	c.Flags().BoolVar(&falseAlarm, "not-an-issue", false, "it was a false alarm")
	return needsReason(c, ": say why")
}

// alertActs are what can be done about an alert.
var alertActs = []string{"suspend", "reactivate", "revoke", "block"}

func alertAct(env *Env) *cobra.Command {
	var note, reason string
	var ttl time.Duration
	var yes bool
	c := &cobra.Command{
		Use: "act ID ACT", Short: "Suspend, reactivate or revoke the device of an alert, or block its address",
		Long: `Suspend, reactivate or revoke the device of an alert, or block its address. What would
happen now is said first and asked for.`,
		Example: `  countersign alert act 4XK7Q2M3ZPT5A suspend
  countersign alert act 4XK7Q2M3ZPT5A reactivate --yes
  countersign alert act 4XK7Q2M3ZPT5A revoke --reason keyCompromise
  countersign alert act 4XK7Q2M3ZPT5A block --ttl 24h`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return alertActs, cobra.ShellCompDirectiveNoFileComp
			}
			return first(alertIDs(env))(cmd, args, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id, act := args[0], args[1]
			if err := oneOf("ACT", act, alertActs...); err != nil {
				return err
			}
			if act == "revoke" && reason == "" {
				return usagef("--reason is missing: one of %s", strings.Join(reasons, ", "))
			}
			if err := askAct(cmd.Context(), env, id, act, yes); err != nil {
				return err
			}
			done, err := doAct(cmd.Context(), env, id, act, actDetails{api.Revoke{Reason: reason, Note: note}, ttl})
			if err != nil {
				return err
			}
			printAct(env, done, act)
			return acted(env, *done, id)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "of a revocation: "+strings.Join(reasons, ", "))
	durationFlag(c.Flags(), &ttl, "ttl", time.Hour, "of a block: for how long")
	complete(c, "reason", reasons...)
	noteFlag(c, &note)
	yesFlag(c, &yes)
	return c
}

// askAct says what an act would do now and asks for it.
func askAct(ctx context.Context, env *Env, id, act string, yes bool) error {
	acts, err := env.admin().AlertActions(ctx, id)
	if err != nil {
		return err
	}
	for _, x := range acts.Items {
		if x.Name == act && x.Possible {
			return env.confirm(yes, fmt.Sprintf("%s: %s. Do it?", act, x.Effect))
		}
	}
	return nil // the server says why not
}

// actDetails are what the flags say of an act.
type actDetails struct {
	api.Revoke
	ttl time.Duration // of a block
}

func doAct(ctx context.Context, env *Env, id, act string, r actDetails) (*api.AlertActed, error) {
	switch act {
	case "suspend":
		return env.admin().SuspendAlert(ctx, id, api.AlertNote{Note: r.Note})
	case "reactivate":
		return env.admin().ReactivateAlert(ctx, id, api.AlertNote{Note: r.Note})
	case "revoke":
		return env.admin().RevokeAlert(ctx, id, r.Revoke)
	}
	return env.admin().BlockAlert(ctx, id, api.AlertBlock{TTLSeconds: int64(r.ttl / time.Second), Note: r.Note})
}

func printAct(env *Env, done *api.AlertActed, act string) {
	p := env.stderr()
	switch act {
	case "suspend":
		p.done("device %s suspended", done.Alert.Device)
		printCut(env, done.Cut, "held")
		p.linef("  undo: countersign alert act %s reactivate", done.Alert.ID)
	case "reactivate":
		p.done("device %s is back with what it had", done.Alert.Device)
	case "revoke":
		printCut(env, done.Cut, "revoked")
		p.linef("  undo: none. To let the device back: countersign enroll token --device %s", done.Alert.Device)
	case "block":
		p.done("%s is blocked until %s", done.Block.Network, done.Block.Until.Format(time.RFC3339))
		p.linef("  undo: countersign block remove %s", done.Block.Network)
	}
	p.next("countersign alert close %s --reason TEXT", done.Alert.ID)
}

func alertTest(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "test CHANNEL", Short: "Send a test by a channel now", ValidArgsFunction: first(channelNames(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := env.admin().TestChannel(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if t.Delivered {
				env.stderr().done("%s took the test in %d ms", t.Channel, t.Millis)
				return acted(env, *t, t.Channel)
			}
			env.stderr().linef("%s", printable(t.Channel+" did not take the test: "+t.Error))
			if err := acted(env, *t, t.Channel); err != nil {
				return err
			}
			return failed(exitFailed)
		},
	}
}

// respondFlag reads rule=act,act as fleet set takes it.
func respondFlag(values []string) (map[string][]string, error) {
	if len(values) == 0 {
		return nil, nil
	}
	out := map[string][]string{}
	for _, v := range values {
		rule, acts, ok := strings.Cut(v, "=")
		if !ok || rule == "" {
			return nil, usagef("--respond %q is not of the form rule=alert,suspend", v)
		}
		out[rule] = []string{}
		for act := range strings.SplitSeq(acts, ",") {
			if act = strings.TrimSpace(act); act != "" {
				out[rule] = append(out[rule], act)
			}
		}
	}
	return out, nil
}
