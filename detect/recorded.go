package detect

import (
	"cmp"
	"maps"

	"github.com/countersign-iot/countersign"
)

// recordedAs returns the rules of what is found in the transaction that it happens in.
func recordedAs() map[countersign.EventType]string {
	return map[countersign.EventType]string{
		countersign.FindingFork:         RenewalFork,
		countersign.FindingClaim:        ClaimMisuse,
		countersign.FindingGroupKey:     GroupKeyLeaked,
		countersign.FindingKeyReuse:     KeyReused,
		countersign.FindingSharedFactor: SharedFactor,
		countersign.FindingGuessing:     SecretGuessing,
		countersign.EventsSuppressed:    EventsLost,
		countersign.HoldPlaced:          EmergencyHold,
		countersign.DatabaseLost:        DatabaseLost,
		countersign.DatabaseRestored:    DatabaseRestored,
		countersign.DatabaseSetBack:     DatabaseRestored,
		countersign.WatermarkMissing:    WatermarkMissing,
		countersign.ReserveUsed:         ReserveInUse,
		countersign.SealingKeyReplaced:  SealingKeyReplaced,
		countersign.AddressBlocked:      AddressBlocked,
	}
}

// recorded makes a finding of what was found in the transaction that it happened in,
// where it had to be: one event, one finding.
func (m *machine) recorded(e *countersign.Event) {
	name := m.recordedAs[e.Type]
	if e.Type == countersign.AddressBlocked && e.Actor != countersign.System {
		return // the operator who blocks an address knows of it
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
	if who := cmp.Or(e.Device, e.Data["network"], e.Data["label"]); who != "" {
		return who + ": " + e.Reason
	}
	return e.Reason
}
