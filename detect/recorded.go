package detect

import (
	"maps"

	"github.com/countersign-iot/countersign"
)

// recorded makes a finding of what was found in the transaction that it happened in,
// where it had to be: one event, one finding.
func (m *machine) recorded(e *countersign.Event) {
	name := ""
	switch e.Type {
	case countersign.FindingFork:
		name = RenewalFork
	case countersign.FindingClaim:
		name = ClaimMisuse
	case countersign.FindingGroupKey:
		name = GroupKeyLeaked
	case countersign.FindingKeyReuse:
		name = KeyReused
	case countersign.FindingSharedFactor:
		name = SharedFactor
	case countersign.FindingGuessing:
		name = SecretGuessing
	case countersign.EventsSuppressed:
		name = EventsLost
	case countersign.HoldPlaced:
		name = EmergencyHold
	case countersign.DatabaseLost:
		name = DatabaseLost
	case countersign.DatabaseRestored, countersign.DatabaseSetBack:
		name = DatabaseRestored
	case countersign.WatermarkMissing:
		name = WatermarkMissing
	case countersign.ReserveUsed:
		name = ReserveInUse
	case countersign.SealingKeyReplaced:
		name = SealingKeyReplaced
	case countersign.AddressBlocked:
		if e.Actor == countersign.System { // what an operator blocks he knows of
			name = AddressBlocked
		}
	}
	if name == "" {
		return
	}
	what := map[string]string{}
	maps.Copy(what, e.Data)
	what["address"], what["via"], what["code"] = e.Remote, e.Via, string(e.Code)
	m.report(m.rules[name], e, countersign.Finding{Subject: subjectOf(e), Device: e.Device, Claimed: e.Data["claimed"] != "", Summary: sentence(e), Evidence: what})
}

// subjectOf is what a recorded finding is about.
func subjectOf(e *countersign.Event) string {
	switch {
	case e.Type == countersign.AddressBlocked && e.Data["network"] != "":
		return "address:" + e.Data["network"]
	case e.Device != "":
		return deviceSubject(e.Device)
	case e.Data["credential"] != "":
		return "credential:" + e.Data["credential"]
	}
	if addr, _, ok := source(e.Remote); ok && e.Type == countersign.FindingGuessing {
		return addressSubject(addr)
	}
	if e.Fleet != "" {
		return "fleet:" + e.Fleet
	}
	return "server"
}

// sentence makes an event's reason a finding's summary.
func sentence(e *countersign.Event) string {
	who := e.Device
	if who == "" {
		who = e.Data["network"]
	}
	if who == "" {
		who = e.Data["label"]
	}
	if who == "" {
		return e.Reason
	}
	return who + ": " + e.Reason
}
