package detect

import (
	"strconv"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

// maxLimits bounds the subjects that limits remembers, by each of its rules.
const maxLimits = maxSources

// limits has the rules about identities that exceed their budget, and operators that exceed
// their rights.
type limits struct {
	m       *machine
	budgets counter[budgetKey]
	refused lockout.Table[string, refusals]
}

type budgetKey struct{ subject, budget string }

// refusals are those of one operator or address.
type refusals struct {
	burst  burst
	routes []string // the latest distinct ones
}

// maxRoutes bounds the routes that are kept for evidence.
const maxRoutes = 5

func (l *limits) init(m *machine) {
	l.m = m
	l.budgets = newCounter[budgetKey](m.rules[BudgetExceeded], maxLimits)
	l.refused = lockout.Table[string, refusals]{Max: maxLimits, TTL: lasts(m.rules[OperatorRefused])}
}

// eventsBudget is the budget of events. If a device exceeds it, some of its events are not
// in the log.
const eventsBudget = "events"

// exceeded handles an identity that used more than its budget.
func (l *limits) exceeded(e *countersign.Event) {
	name := e.Data["budget"]
	var who, subject string
	switch from, _, ok := source(e.Remote); {
	case isDevice(e.Device):
		who, subject = e.Device, deviceSubject(e.Device)
	case ok:
		who, subject = from.Addr().String(), addressSubject(from)
	case e.Fleet != "":
		who, subject = "fleet "+e.Fleet, "fleet:"+e.Fleet
	default:
		who, subject = "the server", "server"
	}
	if _, enough := l.budgets.add(budgetKey{subject, name}, hit{at: e.At, seq: e.Seq}, 1); !enough {
		return
	}
	f := countersign.Finding{
		Subject: subject, Summary: who + " used more than its budget of " + clip(name) + ".",
		Evidence: map[string]string{"budget": name, "limit": e.Data["limit"], "address": e.Remote, "via": e.Via},
	}
	if isDevice(e.Device) {
		f.Device = e.Device
	}
	if name == eventsBudget {
		f.Severity = countersign.SeverityHigh
	}
	l.m.report(l.budgets.rule, e, f)
}

// refusedOperator handles a wrong operator token, or an act that a role does not allow.
func (l *limits) refusedOperator(e *countersign.Event) {
	if e.Code != countersign.BadCredential && e.Code != countersign.NotAllowed {
		return // expired: it was valid once, so it is no guess
	}
	r := l.m.rules[OperatorRefused]
	who, subject := string(e.Actor), string(e.Actor)
	if e.Data["role"] == "" { // no user is known
		who, subject = "an unknown address", "server"
		if from, _, ok := source(e.Remote); ok {
			who, subject = from.Addr().String(), addressSubject(from)
		}
	}
	s, _ := l.refused.Touch(subject, e.At)
	s.routes = latest(s.routes, clip(e.Data["route"]), maxRoutes)
	if !s.burst.addMany(r, hit{at: e.At, seq: e.Seq}, tally(e)) {
		return
	}
	summary := "Wrong operator tokens are presented from " + who + "."
	if e.Code == countersign.NotAllowed {
		summary = who + " keeps asking for what its role does not allow."
	}
	l.m.report(r, e, countersign.Finding{
		Subject: subject, Events: s.burst.seqs(), Summary: summary,
		Evidence: map[string]string{
			"routes": join(s.routes), "role": e.Data["role"], "address": e.Remote, "via": e.Via, "code": string(e.Code), "refusals": strconv.Itoa(len(s.burst.hits)),
		},
	})
}
