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

// Catalog lists the rules by name.
func (d *Responder) Catalog() []countersign.Rule {
	d.init()
	return slices.SortedFunc(maps.Values(d.catalog), func(a, b countersign.Rule) int { return strings.Compare(a.Name, b.Name) })
}

// Rule returns the rule of the catalog; the zero Rule with its name if there is none.
func (d *Responder) Rule(name string) countersign.Rule {
	d.init()
	if r, ok := d.catalog[name]; ok {
		return r
	}
	return countersign.Rule{Name: name}
}

// CheckRules refuses with BadRequest a fleet's responses that this server does not
// know: a slip in a name would silently change nothing.
func (d *Responder) CheckRules(u countersign.Rules) error {
	d.init()
	for name, acts := range u.Respond {
		if _, known := d.catalog[name]; !known && name != anyRule {
			return countersign.Errorf(countersign.BadRequest, "there is no rule %.80q", name).WithNext("list them with: countersign alert rules")
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

// plan says what follows on a finding: what the fleet says for its rule, else for
// all, else the rule's own default. What takes something away from a device or an
// address is meant only where it matters: a fleet that wants it for findings of
// little weight has to name the rule, and so for findings that rest on a stranger's
// word: else guessing in a device's name would be a way to have it suspended.
// Revocation cannot be undone, so no default and no "*" brings it. A default that
// only notes is for the rule's usual severity: a finding that is worse, and not of
// little weight, opens an alert.
func (d *Responder) plan(f countersign.Finding, respond map[string][]countersign.Mitigation) []countersign.Mitigation {
	unproven := f.Claimed || d.Rule(f.Rule).Unproven
	if named, ok := respond[f.Rule]; ok {
		// Whatever the fleet wants: else a stranger could have any device of it held.
		return slices.DeleteFunc(slices.Clone(named), func(m countersign.Mitigation) bool {
			return unproven && (m == countersign.MitigateSuspend || m == countersign.MitigateRevoke)
		})
	}
	acts, ok := respond[anyRule]
	if !ok {
		acts = d.Rule(f.Rule).Default
	}
	if len(acts) == 0 && !ok {
		acts = []countersign.Mitigation{countersign.MitigateAlert}
	}
	harmless := f.Severity.Rank() < countersign.SeverityMedium.Rank()
	if !ok && !harmless && silent(acts) && f.Severity.Rank() > d.Rule(f.Rule).Severity.Rank() {
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
