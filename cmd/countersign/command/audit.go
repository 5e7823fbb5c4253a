package command

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

const (
	// auditPoll is how often --wait asks how far the audit is.
	auditPoll = 500 * time.Millisecond
	// auditTell is how often it says so where nothing has ended meanwhile.
	auditTell = 10 * time.Second
	// trendShown is how many audits fit on a screen beside a check's name.
	trendShown = 14
)

// worstFirst compares two severities, the worse one first.
func worstFirst(a, b string) int {
	return cmp.Compare(countersign.Severity(b).Rank(), countersign.Severity(a).Rank())
}

// The states of audits and checks that commands branch on.
const (
	auditRunning = "IN_PROGRESS"
	auditDone    = "COMPLETED"
	auditBad     = "COMPLETED_NON_COMPLIANT"
	auditFailed  = "FAILED"
)

func auditCommand(env *Env) *cobra.Command {
	audits, runs := auditList(env, "list"), auditList(env, "runs")
	runs.Hidden = true // its former name
	return group("audit", "Audits of the records, check by check", nil,
		auditRun(env), audits,
		&cobra.Command{
			Use: "show [AUDIT]", Short: "Show an audit, check by check; the newest without an id", Args: cobra.MaximumNArgs(1),
			ValidArgsFunction: first(auditIDs(env)),
			RunE: func(cmd *cobra.Command, args []string) error {
				run, err := env.admin().Audit(cmd.Context(), auditArg(args))
				if err != nil {
					return err
				}
				return showAudit(env, run, true)
			},
		}, auditFindings(env),
		wholeList(env, &cobra.Command{Use: "checks", Short: "List the checks; -o json says why each matters and what to do"}, all((*sdk.Admin).AuditChecks),
			viewOf[api.AuditCheck](env, "CHECK name, SEVERITY severity, AWS yes|:defender, OWASP words:risks, SETTING setting, WHAT title")), auditTrend(env),
		actCommand(env, &cobra.Command{Use: "cancel AUDIT", Short: "End an audit early"}, auditIDs(env), (*sdk.Admin).CancelAudit, func(p printer, run *api.AuditRun) string {
			p.done("audit %s ends; what its finished checks found stays", run.ID)
			return run.ID
		}),
		auditSuppress(env),
		wholeList(env, &cobra.Command{Use: "suppressions", Short: "List what is left alone, and what was until lately"}, all((*sdk.Admin).AuditSuppressions),
			viewOf[api.AuditSuppression](env, "ID id, CHECK check, SUBJECT subject, BY created_by, ENDS IN until:ends_at, REASON reason")),
		actCommand(env, &cobra.Command{Use: "unsuppress ID", Short: "End a suppression at once"}, live(env, all((*sdk.Admin).AuditSuppressions), "id"), (*sdk.Admin).Unsuppress, func(p printer, s *api.AuditSuppression) string {
			p.done("%s looks at %s again", s.Check, s.Subject)
			return s.ID
		}), runs, formerLog(env, audits))
}

func auditRun(env *Env) *cobra.Command {
	var n api.NewAudit
	var wait bool
	var failOn string
	c := &cobra.Command{
		Use: "run", Short: "Look through all records for what is wrong",
		Long: `Look through all records for what is wrong: certificates about to end, revoked
ones in use, weak keys, credentials without bounds, a log that is not sealed.

The audit goes on when this command ends; --wait stays to its end and shows what
is not as it should be. With --fail-on the exit code is 1 if something of that
severity, or worse, was found and is not suppressed, or if a check failed.`,
		Example: `  countersign audit run --wait
  countersign audit run --fail-on high -o json
  countersign audit run --check CRL_STALE_CHECK --wait`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if failOn != "" {
				if err := oneOf("--fail-on", failOn, severityNames()...); err != nil {
					return err
				}
			}
			run, err := env.admin().StartAudit(cmd.Context(), n)
			if err != nil {
				return err
			}
			if !wait && failOn == "" {
				env.stderr().done("audit %s runs %d checks", run.ID, len(run.Checks))
				env.stderr().next("countersign audit show %s", run.ID)
				return acted(env, *run, run.ID)
			}
			if run, err = awaitAudit(cmd.Context(), env, run); err != nil {
				return err
			}
			if err := showAudit(env, run, false); err != nil {
				return err
			}
			return judgeAudit(run, failOn)
		},
	}
	c.Flags().StringSliceVar(&n.Checks, "check", nil, "only this check; may be given several times")
	c.Flags().BoolVar(&wait, "wait", false, "stay until the audit has ended")
	c.Flags().StringVar(&failOn, "fail-on", "", "with --wait: fail on findings of this severity or worse")
	complete(c, "fail-on", severityNames()...)
	completeWith(c, "check", auditCheckNames(env))
	return c
}

// awaitAudit waits until the audit has ended and prints its progress.
func awaitAudit(ctx context.Context, env *Env, run *api.AuditRun) (*api.AuditRun, error) {
	p := env.stderr()
	told, toldAt := -1, env.Now()
	for run.State == auditRunning {
		if run.Done != told || env.Now().Sub(toldAt) >= auditTell {
			told, toldAt = run.Done, env.Now()
			p.linef("%d of %d checks, %d rows", run.Done, len(run.Checks), run.Looked)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(auditPoll):
		}
		next, err := env.admin().Audit(ctx, run.ID)
		if err != nil {
			return nil, err
		}
		run = next
	}
	return run, nil
}

// judgeAudit is the exit code of an audit that has ended.
func judgeAudit(run *api.AuditRun, failOn string) error {
	if run.State != auditDone || failOn != "" && countersign.Severity(run.Severity).Rank() >= countersign.Severity(failOn).Rank() {
		return failed(exitFailed)
	}
	return nil
}

// showAudit shows an audit with those checks that are not as they should be, or all.
func showAudit(env *Env, run *api.AuditRun, all bool) error {
	if env.output != formatTable {
		return show(env, *run, view[api.AuditRun]{name: func(r api.AuditRun) string { return r.ID }})
	}
	var rows []api.AuditResult
	for _, c := range run.Checks {
		if all || c.Status == auditBad || c.Status == auditFailed || c.Suppressed > 0 {
			rows = append(rows, c)
		}
	}
	slices.SortStableFunc(rows, func(x, y api.AuditResult) int {
		return worstFirst(x.Severity, y.Severity)
	})
	if len(rows) > 0 {
		if err := list(env, itemsOf(rows), 0, auditResultView(env)); err != nil {
			return err
		}
	}
	summarize(env, run)
	return nil
}

func summarize(env *Env, run *api.AuditRun) {
	p := env.stderr()
	var suppressed int64
	for _, c := range run.Checks {
		suppressed += c.Suppressed
	}
	left := ""
	if suppressed > 0 {
		left = fmt.Sprintf(", %d suppressed", suppressed)
	}
	switch {
	case run.State == auditRunning:
		p.linef("audit %s runs: %d of %d checks, %d rows", run.ID, run.Done, len(run.Checks), run.Looked)
		return
	case run.State != auditDone:
		p.linef("%s audit %s: %s, %s", p.red("Not done:"), run.ID, strings.ToLower(run.State), printable(run.Reason))
	case run.Findings == 0:
		p.done("audit %s: %d checks, %d rows, nothing found%s", run.ID, len(run.Checks), run.Looked, left)
	default:
		p.linef("%s audit %s: %d findings, the worst %s%s", p.yellow("Found:"), run.ID, run.Findings, run.Severity, left)
	}
	if run.Findings > 0 {
		p.next("countersign audit findings %s", run.ID)
	}
}

func auditResultView(env *Env) view[api.AuditResult] {
	return viewOf(env, "CHECK name, STATUS, WORST severity, FOUND some:non_compliant, SUPPRESSED some:suppressed, ROWS looked,  error", func(c api.AuditResult) string {
		return auditWord(c.Status)
	})
}

// auditWord is a status as people say it; the words of AWS are in JSON.
func auditWord(status string) string {
	words := map[string]string{
		"WAITING_FOR_DATA_COLLECTION": "waiting", auditRunning: "running", "COMPLETED_COMPLIANT": "ok", auditBad: "not ok", auditFailed: "failed", "CANCELED": "canceled",
		auditDone: "done",
	}
	return cmp.Or(words[status], status)
}

func auditList(env *Env, use string) *cobra.Command {
	return listCommand(env, &cobra.Command{Use: use, Short: "List audits, newest first"}, all((*sdk.Admin).Audits), viewOf(env, "AUDIT id, STARTED started_at, BY, STATE, CHECKS, FOUND findings, WORST severity, WHY reason", auditStarter, func(r api.AuditRun) string {
		return auditWord(r.State)
	}, func(r api.AuditRun) string { return fmt.Sprintf("%d/%d", r.Done, len(r.Checks)) }))
}

func auditStarter(r api.AuditRun) string {
	if r.Scheduled {
		return "schedule"
	}
	return r.StartedBy
}

// auditArg is the audit that a command is about; the newest without one.
func auditArg(args []string) string {
	if len(args) == 0 {
		return sdk.LatestAudit
	}
	return args[0]
}

func auditFindings(env *Env) *cobra.Command {
	var f api.AuditFindingFilter
	var suppressed bool
	c := listCommand(env, &cobra.Command{
		Use: "findings [AUDIT]", Short: "List what an audit found; the newest without an id",
		Example: `  countersign audit findings --min-severity high
  countersign audit findings --check DEVICE_CERTIFICATE_EXPIRING_CHECK --fleet line-1 -o json`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: first(auditIDs(env)),
		PreRunE: func(*cobra.Command, []string) error {
			if suppressed {
				f.Suppressed = "yes"
			}
			if f.MinSeverity == "" {
				return nil
			}
			return oneOf("--min-severity", f.MinSeverity, severityNames()...)
		},
	}, func(admin *sdk.Admin, ctx context.Context, args []string) iter.Seq2[api.AuditFinding, error] {
		return admin.AuditFindings(ctx, auditArg(args), f)
	}, viewOf[api.AuditFinding](env, "SEVERITY severity, CHECK check, SUBJECT subject, FLEET fleet, SUPPRESSED suppressed, WHAT summary").named(func(f api.AuditFinding) string { return f.ID }))
	c.Flags().StringVar(&f.Check, "check", "", "only of this check")
	c.Flags().StringVar(&f.MinSeverity, "min-severity", "", "only of this severity or worse")
	fleetFlag(env, c, &f.Fleet, "only of this fleet")
	deviceFlag(env, c, &f.Device, "only about this device")
	c.Flags().BoolVar(&suppressed, "suppressed", false, "those that are suppressed too")
	complete(c, "min-severity", severityNames()...)
	completeWith(c, "check", auditCheckNames(env))
	return c
}

func auditTrend(env *Env) *cobra.Command {
	runs := trendShown
	c := &cobra.Command{
		Use: "trend", Short: "Show how the findings of each check changed over the last audits",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if runs < 1 || runs > 90 {
				return usagef("--runs %d is not between 1 and 90", runs)
			}
			page, err := env.admin().AuditTrend(cmd.Context(), runs)
			if err != nil {
				return err
			}
			last := func(t api.AuditTrend) int64 { return t.Points[len(t.Points)-1].NonCompliant }
			return list(env, itemsOf(page.Items), 0, viewOf(env, "CHECK check, NOW, CHANGE, OLDEST TO NEWEST", func(t api.AuditTrend) string {
				return strconv.FormatInt(last(t), 10)
			}, func(t api.AuditTrend) string {
				if d := last(t) - t.Points[0].NonCompliant; d != 0 {
					return fmt.Sprintf("%+d", d)
				}
				return ""
			}, func(t api.AuditTrend) string {
				var b []string
				for _, p := range t.Points {
					b = append(b, strconv.FormatInt(p.NonCompliant, 10))
				}
				return strings.Join(b, " ")
			}))
		},
	}
	c.Flags().IntVar(&runs, "runs", trendShown, "how many audits, 1 to 90")
	return c
}

func auditSuppress(env *Env) *cobra.Command {
	var n api.NewAuditSuppression
	var until string
	c := doCommand(env, &cobra.Command{
		Use: "suppress CHECK SUBJECT", Short: "Leave findings of a check alone for a time",
		Long: `Leave findings of a check alone for a time. They are still found, counted apart
and shown; they raise no alert and fail no --fail-on. SUBJECT is that of the
findings, or fleet:NAME for all of a fleet; * stands for any text.`,
		Example: `  countersign audit suppress DEVICE_NEVER_CONNECTED_CHECK 'device:spare-*' --until 90d --reason 'spares on the shelf'
  countersign audit suppress DEVICE_ORPHANED_CHECK fleet:lab --until 2027-01-01T00:00:00Z --reason 'the lab has no owners'`,
		ValidArgsFunction: first(auditCheckNames(env)),
	}, func(ctx context.Context, args []string) (_ *api.AuditSuppression, err error) {
		if n.Reason == "" || until == "" {
			return nil, usagef("--reason and --until are needed: nothing is left alone without a reason, or for ever")
		}
		if n.EndsAt, err = env.ahead("--until", until); err != nil {
			return nil, err
		}
		n.Check, n.Subject = args[0], args[1]
		return env.admin().Suppress(ctx, n)
	}, func(p printer, s *api.AuditSuppression) string {
		p.done("%s leaves %s alone until %s", s.Check, s.Subject, s.EndsAt.Local().Format("2006-01-02 15:04"))
		p.linef("  undo: countersign audit unsuppress %s", s.ID)
		return s.ID
	})
	reasonFlag(c, &n.Reason)
	c.Flags().StringVar(&until, "until", "", "for how long: 30d, 12h, or a time in RFC 3339; at most 366d")
	return c
}
