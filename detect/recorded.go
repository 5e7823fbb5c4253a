package detect

import (
	"cmp"
	"maps"

	"github.com/countersign-iot/countersign"
)

// recordedAs returns the types of events that are a finding by themselves, with their rules.
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

// recorded emits the finding of an event that is one by itself, because the server detected
// it in the transaction in which it happened.
func (m *machine) recorded(e *countersign.Event) {
	name := m.recordedAs[e.Type]
	if e.Type == countersign.AddressBlocked && e.Actor != countersign.System {
		return // an operator blocked it and needs no finding
	}
	if name == "" {
		return
	}
	what := map[string]string{}
	maps.Copy(what, e.Data)
	what["address"], what["via"], what["code"] = e.Remote, e.Via, string(e.Code)
	m.report(m.rules[name], e, countersign.Finding{Subject: subjectOf(e), Device: e.Device, Claimed: e.Data["claimed"] != "", Summary: sentence(e), Evidence: what})
}

// subjectOf returns the subject of a recorded finding.
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

// sentence returns the summary of a recorded finding, from the event's reason.
func sentence(e *countersign.Event) string {
	if who := cmp.Or(e.Device, e.Data["network"], e.Data["label"]); who != "" {
		return who + ": " + e.Reason
	}
	return e.Reason
}
