package command

import (
	"context"
	"iter"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	// maxLast bounds --last, whose events are turned around in memory.
	maxLast = 100_000
	// completeWait keeps the tab key quick where the server is not.
	completeWait = 2 * time.Second
	// completeMost is more than anyone reads of what the tab key offers.
	completeMost = 200
)

func lastFlag(c *cobra.Command, last *int) {
	c.Flags().IntVar(last, "last", 0, "only the newest; 0 is all")
}

// orderFor reads from the end of the log when only its newest lines are wanted.
func orderFor(last int) (o api.Order) {
	if last > 0 {
		o.Order = "desc"
	}
	return o
}

// newest turns the last lines of a list that is read from its end into the order
// in which they happened.
func newest[T any](seq iter.Seq2[T, error], last int) iter.Seq2[T, error] {
	if last <= 0 {
		return seq
	}
	return func(yield func(T, error) bool) {
		var items []T
		for item, err := range seq {
			if err != nil {
				yield(item, err)
				return
			}
			if items = append(items, item); len(items) == min(last, maxLast) {
				break
			}
		}
		for _, item := range slices.Backward(items) {
			if !yield(item, nil) {
				return
			}
		}
	}
}

// since reads a time as people give it: a length back from now, or RFC 3339.
func (env *Env) since(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := countersign.ParseSpan(s); err == nil {
		return env.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, usagef("%s %q is neither a length such as 2h or 7d nor a time such as 2026-01-31T12:00:00Z", flag, s)
	}
	return t, nil
}

// durationFlag adds a flag whose value may be written in days and weeks too.
func durationFlag(f *pflag.FlagSet, into *time.Duration, name string, value time.Duration, usage string) {
	*into = value
	f.Var((*durationValue)(into), name, usage)
}

// durationValue is the value of such a flag.
type durationValue time.Duration

// String serves pflag.Value; it writes whole days and hours without zeros behind them.
func (d *durationValue) String() string {
	switch v := time.Duration(*d); {
	case v == 0:
		return "0" // which help leaves out
	case v%time.Hour == 0:
		return strconv.FormatInt(int64(v/time.Hour), 10) + "h"
	case v%time.Minute == 0 && v < time.Hour:
		return strconv.FormatInt(int64(v/time.Minute), 10) + "m"
	default:
		return v.String()
	}
}

// Set serves pflag.Value.
func (d *durationValue) Set(s string) error {
	v, err := countersign.ParseSpan(s)
	*d = durationValue(v)
	return err
}

// Type serves pflag.Value: the word that help shows for the value.
func (d *durationValue) Type() string { return "duration" }

func fleetFlag(env *Env, c *cobra.Command, into *string, usage string) {
	c.Flags().StringVar(into, "fleet", "", usage)
	completeWith(c, "fleet", fleetNames(env))
}

func deviceFlag(env *Env, c *cobra.Command, into *string, usage string) {
	c.Flags().StringVar(into, "device", "", usage)
	completeWith(c, "device", deviceIDs(env))
}

// choiceFlag adds a flag whose values are words, which help and the tab key offer.
func choiceFlag(c *cobra.Command, into *string, name, usage string, words ...string) {
	c.Flags().StringVar(into, name, "", usage+": "+strings.Join(words, ", "))
	complete(c, name, words...)
}

// changed returns the value of a flag that was set, nil for one that was not: what no
// flag names stays as it is.
func changed[T any](c *cobra.Command, name string, value *T) *T {
	if !c.Flags().Changed(name) {
		return nil
	}
	return value
}

type completer = func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective)

// complete offers fixed words for a flag.
func complete(c *cobra.Command, flag string, words ...string) {
	completeWith(c, flag, func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	})
}

func completeWith(c *cobra.Command, flag string, f completer) {
	if err := c.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // a flag that is not there
	}
}

// first completes the first argument only.
func first(f completer) completer {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, prefix)
	}
}

// live offers the names that the server knows now of one kind of object; field is that of
// the name in JSON.
func live[T any](env *Env, seq lister[T], field string) completer {
	name := fieldIndex(reflect.TypeFor[T](), field)
	return func(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWait)
		defer cancel()
		var words []cobra.Completion
		for item, err := range seq(env.admin(), ctx, nil) {
			if err != nil || len(words) == completeMost {
				break
			}
			if n := reflect.ValueOf(item).FieldByIndex(name).String(); strings.HasPrefix(n, prefix) {
				words = append(words, n)
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// ahead reads a time to come as people give it: a length from now, or RFC 3339.
func (env *Env) ahead(flag, s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	t, err := env.since(flag, s)
	now := env.Now()
	return now.Add(now.Sub(t)), err
}

// severityNames lists the severities from the least, for flags.
func severityNames() (names []string) {
	for _, s := range countersign.Severities() {
		names = append(names, string(s))
	}
	return names
}

func reasonFlag(c *cobra.Command, why *string) {
	c.Flags().StringVar(why, "reason", "", "why, in your words")
}

func limitFlag(c *cobra.Command, limit *int) {
	c.Flags().IntVar(limit, "limit", 0, "show at most this many; 0 is all")
}

func yesFlag(c *cobra.Command, yes *bool) {
	c.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
}

func noteFlag(c *cobra.Command, note *string) {
	c.Flags().StringVar(note, "note", "", "what you want to say, in your words")
}

// What the tab key offers for each kind of object.

func deviceIDs(env *Env) completer {
	return live(env, filtered((*sdk.Admin).Devices, new(api.DeviceFilter)), "id")
}

func serials(env *Env) completer {
	return live(env, filtered((*sdk.Admin).Certificates, new(api.CertificateFilter)), "serial")
}

func alertIDs(env *Env) completer {
	return live(env, filtered((*sdk.Admin).Alerts, &api.AlertFilter{State: "live"}), "id")
}

func credentialIDs(env *Env) completer {
	return live(env, filtered((*sdk.Admin).Credentials, new(api.CredentialFilter)), "id")
}

func waitingIDs(env *Env) completer {
	return live(env, filtered((*sdk.Admin).Enrollments, &api.WaitingFilter{State: "waiting"}), "id")
}

func alertRuleNames(env *Env) completer  { return live(env, all((*sdk.Admin).AlertRules), "name") }
func auditCheckNames(env *Env) completer { return live(env, all((*sdk.Admin).AuditChecks), "name") }
func auditIDs(env *Env) completer        { return live(env, all((*sdk.Admin).Audits), "id") }
func authorityIDs(env *Env) completer    { return live(env, all((*sdk.Admin).Authorities), "id") }
func blockNetworks(env *Env) completer   { return live(env, all((*sdk.Admin).Blocks), "network") }
func channelNames(env *Env) completer    { return live(env, all((*sdk.Admin).Channels), "name") }
func fleetNames(env *Env) completer      { return live(env, all((*sdk.Admin).Fleets), "name") }
func holdIDs(env *Env) completer         { return live(env, all((*sdk.Admin).Holds), "id") }
func profileNames(env *Env) completer    { return live(env, all((*sdk.Admin).Profiles), "name") }

// lister lists objects of one kind; args are those of the command.
type lister[T any] func(admin *sdk.Admin, ctx context.Context, args []string) iter.Seq2[T, error]

// all is a list without a filter.
func all[T any](seq func(*sdk.Admin, context.Context) iter.Seq2[T, error]) lister[T] {
	return func(admin *sdk.Admin, ctx context.Context, _ []string) iter.Seq2[T, error] { return seq(admin, ctx) }
}

// filtered is a list with the filter that flags fill in.
func filtered[F, T any](seq func(*sdk.Admin, context.Context, F) iter.Seq2[T, error], f *F) lister[T] {
	return func(admin *sdk.Admin, ctx context.Context, _ []string) iter.Seq2[T, error] {
		return seq(admin, ctx, *f)
	}
}

// under is a list of what belongs to the object that the first argument names.
func under[T any](seq func(*sdk.Admin, context.Context, string) iter.Seq2[T, error]) lister[T] {
	return func(admin *sdk.Admin, ctx context.Context, args []string) iter.Seq2[T, error] {
		return seq(admin, ctx, args[0])
	}
}
