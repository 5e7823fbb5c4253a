package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

const (
	// tailShown is how many events log tail begins with.
	tailShown = 10
	// tailEvery is how often log tail asks for events to come: they are sealed within
	// about a second.
	tailEvery = time.Second
)

func logCommand(env *Env) *cobra.Command {
	return group("log", "The log of everything that happened", []string{"event", "events"},
		logList(env, "list"), logTail(env), logVerify(env), logExport(env))
}

// formerLog are the commands of the log as they were called when audit meant the log
// too: audit verify, and audit list with a flag of the log.
func formerLog(env *Env, audits *cobra.Command) *cobra.Command {
	verify := logVerify(env)
	verify.Hidden = true
	events := logList(env, audits.Use)
	listAudits := audits.RunE
	audits.RunE = func(cmd *cobra.Command, args []string) error {
		if slices.ContainsFunc(logFlags, cmd.Flags().Changed) {
			env.stderr().linef("The log is read with: countersign log list")
			if err := events.Flags().Set("limit", cmd.Flag("limit").Value.String()); err != nil {
				return err
			}
			return events.RunE(cmd, args)
		}
		return listAudits(cmd, args)
	}
	for _, name := range logFlags {
		f := *events.Flag(name)
		f.Hidden = true
		audits.Flags().AddFlag(&f)
	}
	return verify
}

// logFlags are the flags of log list that audit list does not have.
var logFlags = []string{"device", "type", "since", "last"}

// deviceColumn is that of a list of events of several devices.
const deviceColumn = "DEVICE device, "

// eventView shows what happened; more are columns behind the first two.
func eventView(env *Env, more string) view[api.Event] {
	return viewOf(env, "TIME clock:at, EVENT type, "+more+"BY actor, VIA via, FROM remote, WHY", func(e api.Event) string {
		return strings.TrimSpace(e.Code + " " + e.Reason)
	}).named(func(e api.Event) string { return fmt.Sprint(e.Seq) })
}

func logList(env *Env, use string) *cobra.Command {
	var f api.EventFilter
	var from string
	var limit, last int
	c := &cobra.Command{
		Use: use, Aliases: []string{"ls"}, Short: "List events, oldest first",
		Example: `  countersign log list --last 20
  countersign log list --type connection.refused --since 1h`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if limit > 0 && last > 0 {
				return usagef("--limit and --last do not go together")
			}
			if f.Since, err = env.since("--since", from); err != nil {
				return err
			}
			seq := env.paged(limit+last).Events(cmd.Context(), f, orderFor(last))
			return list(env, newest(seq, last), limit+last, eventView(env, deviceColumn))
		},
	}
	eventFlags(env, c, &f)
	c.Flags().StringVar(&from, "since", "", "only from this time on: 2h, 7d or RFC 3339")
	limitFlag(c, &limit)
	lastFlag(c, &last)
	return c
}

func eventFlags(env *Env, c *cobra.Command, f *api.EventFilter) {
	deviceFlag(env, c, &f.Device, "only this device")
	c.Flags().StringVar(&f.Type, "type", "", "only this type, such as connection.refused")
}

func logTail(env *Env) *cobra.Command {
	var f api.EventFilter
	var wait bool
	last := tailShown
	c := &cobra.Command{
		Use: "tail", Short: "Show the newest events, and with --follow those to come",
		Example: `  countersign log tail --follow
  countersign log tail --last 50 --type connection.refused`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if last < 1 || last > maxLast {
				return usagef("--last %d is not between 1 and %d", last, maxLast)
			}
			seq := newest(sealedAfter(env.paged(last).Events(cmd.Context(), f, api.Order{Order: "desc"}), 0), last)
			if wait {
				return follow(cmd.Context(), env, f, seq)
			}
			return list(env, seq, 0, eventView(env, deviceColumn))
		},
	}
	eventFlags(env, c, &f)
	c.Flags().IntVar(&last, "last", last, "begin with so many")
	c.Flags().BoolVarP(&wait, "follow", "f", false, "go on with the events to come, until interrupted")
	return c
}

// sealedAfter leaves out the events of a list, the newest first, that have no number
// yet, and ends it at the one numbered seq.
func sealedAfter(events iter.Seq2[api.Event, error], seq int64) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		for e, err := range events {
			if err == nil && e.Seq > 0 && e.Seq <= seq {
				return
			}
			if (err != nil || e.Seq > 0) && !yield(e, err) {
				return
			}
		}
	}
}

// follow prints events and then those to come, until ctx ends. An event has its number
// only once it is sealed, and the numbers are in the order of the log.
func follow(ctx context.Context, env *Env, f api.EventFilter, events iter.Seq2[api.Event, error]) error {
	w := &listWriter[api.Event]{out: env.stdout(), format: env.output, view: eventView(env, deviceColumn)}
	add := w.add
	if env.output == formatJSON { // an array would never end
		add = func(e api.Event) error { return writeJSONLine(env.Out, e) }
	}
	for last := int64(0); ; {
		for e, err := range events {
			if err == nil {
				err = add(e)
			}
			if err != nil {
				return err
			}
			last = e.Seq
		}
		if err := w.flush(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(tailEvery):
		}
		events = newest(sealedAfter(env.admin().Events(ctx, f, api.Order{Order: "desc"}), last), maxLast)
	}
}

func logExport(env *Env) *cobra.Command {
	var f api.EventFilter
	var from string
	c := &cobra.Command{
		Use: "export", Short: "Print events as lines of JSON, oldest first, with their hashes",
		Long: `Print events as lines of JSON (one object a line), oldest first, with the hash that seals
each event and all before it. An event that is not sealed yet is left out. Keep the last
hash elsewhere: it shows whether the log was changed since.`,
		Example: `  countersign log export > log.jsonl
  countersign log export --since 24h | jq -r .type`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if f.Since, err = env.since("--since", from); err != nil {
				return err
			}
			w := bufio.NewWriter(env.Out)
			n, head := 0, ""
			for e, err := range env.admin().Events(cmd.Context(), f, api.Order{}) {
				if err == nil && e.Seq > 0 {
					err = writeJSONLine(w, e)
					n, head = n+1, e.Hash
				}
				if err != nil {
					return errors.Join(err, w.Flush())
				}
			}
			env.stderr().done("%s, the last with hash %.16s", count(n, "event"), head)
			return w.Flush()
		},
	}
	eventFlags(env, c, &f)
	c.Flags().StringVar(&from, "since", "", "only from this time on: 2h, 7d or RFC 3339")
	return c
}

func logVerify(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "Check the hash chain of the whole log",
		RunE: func(cmd *cobra.Command, _ []string) error {
			admin := env.admin()
			if !cmd.Flags().Changed("timeout") {
				admin.HTTP.Timeout = 0 // as long as the log is
			}
			r, err := admin.VerifyLog(cmd.Context())
			if err != nil {
				return err
			}
			if err := acted(env, *r, r.Head); err != nil {
				return err
			}
			if r.Intact {
				env.stderr().done("%d events, intact, head %.16s", r.Events, r.Head)
				return nil
			}
			p := env.stderr()
			p.linef("%s event %d does not fit: %s", p.red("Broken:"), r.BadSeq, printable(r.Reason))
			p.linef("Next: keep a copy of the data folder, then compare with a backup")
			return failed(exitFailed)
		},
	}
}
