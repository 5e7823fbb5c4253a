package respond

import (
	"maps"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign"
)

// anyRule matches in a fleet's rules those that are not named.
const anyRule = "*"

// mitigations lists them all, the mildest first.
var mitigations = []countersign.Mitigation{
	countersign.MitigateNote, countersign.MitigateAlert, countersign.MitigateWebhook, countersign.MitigateMail, countersign.MitigateSyslog,
	countersign.MitigateBlock, countersign.MitigateSuspend, countersign.MitigateRevoke,
}

// reactivate is no mitigation: only people do it.
const reactivate countersign.Mitigation = "reactivate"

// catalog are the rules by name; the zero Rule is one that it does not have.
type catalog map[string]countersign.Rule

func (c catalog) sorted() []countersign.Rule {
	return slices.SortedFunc(maps.Values(c), func(a, b countersign.Rule) int { return strings.Compare(a.Name, b.Name) })
}

// check refuses with BadRequest responses that are not known.
func (c catalog) check(respond map[string][]countersign.Mitigation) error {
	for name, acts := range respond {
		if _, known := c[name]; !known && name != anyRule {
			return countersign.Errorf(countersign.BadRequest, "there is no rule %.80q", name).WithNext("list the rules of alerts")
		}
		for _, m := range acts {
			if !slices.Contains(mitigations, m) {
				return countersign.Errorf(countersign.BadRequest, "rule %s: there is no mitigation %.40q", name, m).
					WithNext("use any of note, alert, suspend, revoke, block, webhook, mail, syslog")
			}
		}
	}
	return nil
}

// plan returns the response to a finding: what the fleet wants for its rule, else for
// all, else the rule's own default. What takes something away from a device or an
// address is for findings of some weight: a fleet that wants it for lesser ones must
// name the rule. No device is suspended for what a stranger claims, because guessing in
// its name would be a way to have it suspended. Revocation cannot be undone, so no
// default and no "*" brings it. A default that only notes is for the rule's usual
// severity: a finding that is worse, and not of little weight, opens an alert.
func (c catalog) plan(f countersign.Finding, respond map[string][]countersign.Mitigation) []countersign.Mitigation {
	rule := c[f.Rule]
	unproven := f.Claimed || rule.Unproven
	if named, ok := respond[f.Rule]; ok {
		// Even if the fleet names it: a stranger could have any device of it held.
		return slices.DeleteFunc(slices.Clone(named), func(m countersign.Mitigation) bool {
			return unproven && (m == countersign.MitigateSuspend || m == countersign.MitigateRevoke)
		})
	}
	acts, ok := respond[anyRule]
	if !ok {
		acts = rule.Default
	}
	if len(acts) == 0 && !ok {
		acts = []countersign.Mitigation{countersign.MitigateAlert}
	}
	harmless := f.Severity.Rank() < countersign.SeverityMedium.Rank()
	if !ok && !harmless && silent(acts) && f.Severity.Rank() > rule.Severity.Rank() {
		acts = []countersign.Mitigation{countersign.MitigateAlert}
	}
	return slices.DeleteFunc(slices.Clone(acts), func(m countersign.Mitigation) bool {
		switch m {
		case countersign.MitigateRevoke:
			return true
		case countersign.MitigateSuspend:
			return harmless || unproven
		case countersign.MitigateBlock:
			return harmless
		}
		return false
	})
}

// silent reports whether the plan notifies no one.
func silent(acts []countersign.Mitigation) bool {
	return !slices.ContainsFunc(acts, func(m countersign.Mitigation) bool { return m != countersign.MitigateNote })
}
