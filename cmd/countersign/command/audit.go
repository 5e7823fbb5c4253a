package command

import (
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

func auditCommand(env *Env) *cobra.Command {
	c := group("audit", "The log of everything that happened, and audits of the records", []string{"event", "events"}, auditList(env), auditVerify(env))
	c.AddCommand(auditChecks(env)...)
	return c
}

// eventView tells what happened; all of them also say to whom.
func eventView(env *Env, device bool) view[api.Event] {
	v := view[api.Event]{
		name: func(e api.Event) string { return fmt.Sprint(e.Seq) },
		cols: []col[api.Event]{
			{"TIME", func(e api.Event) string { return env.clock(e.At) }},
			{"EVENT", func(e api.Event) string { return e.Type }},
		},
	}
	if device {
		v.cols = append(v.cols, col[api.Event]{"DEVICE", func(e api.Event) string { return e.Device }})
	}
	v.cols = append(v.cols,
		col[api.Event]{"BY", func(e api.Event) string { return e.Actor }},
		col[api.Event]{"VIA", func(e api.Event) string { return e.Via }},
		col[api.Event]{"FROM", func(e api.Event) string { return e.Remote }},
		col[api.Event]{"WHY", func(e api.Event) string { return strings.TrimSpace(e.Code + " " + e.Reason) }},
	)
	return v
}

// clock writes a time of today without its date.
func (env *Env) clock(t time.Time) string {
	t, now := t.Local(), env.Now().Local()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}

func auditList(env *Env) *cobra.Command {
	var f api.EventFilter
	var from string
	var limit, last int
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List events, oldest first",
		Example: `  countersign audit list --last 20
  countersign audit list --type connection.refused --since 1h`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if limit > 0 && last > 0 {
				return usagef("--limit and --last do not go together")
			}
			if f.Since, err = env.since("--since", from); err != nil {
				return err
			}
			seq := env.paged(limit+last).Events(cmd.Context(), f, api.Order{Order: orderFor(last)})
			return list(env, newest(seq, last), limit+last, eventView(env, true))
		},
	}
	c.Flags().StringVar(&f.Device, "device", "", "only this device")
	c.Flags().StringVar(&f.Type, "type", "", "only this type, such as connection.refused")
	c.Flags().StringVar(&from, "since", "", "only from this time on: 2h, 7d or RFC 3339")
	completeWith(c, "device", deviceIDs(env))
	limitFlag(c, &limit)
	lastFlag(c, &last)
	return c
}

func auditVerify(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "Check the hash chain of the whole log", Args: exactly(),
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
