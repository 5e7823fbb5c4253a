package detect

import (
	"time"

	"github.com/countersign-iot/countersign"
)

// limitRules are about limits that are met again and again.
func limitRules() []Rule {
	return []Rule{
		{
			Name: BudgetExceeded, Title: "An identity uses more than its budget", Severity: countersign.SeverityMedium,
			Threshold: 1, Again: 24 * time.Hour, Default: toAlert(),
			Sees: "A device, or an address that shows no identity, wanted more than its budget: sessions, messages, renewals, events, octets that it does not read. What is beyond the budget was refused, so that no other device has less for it. " +
				"It is told once for each budget. The budget of events is of severity high: the log holds less of the device than happened, and " + SharedCertificate + " begins anew with it.",
			Why:            "An honest device does not reach the defaults. Firmware that renews or reconnects in a loop does, and so does a stolen identity that is used to do harm.",
			Do:             "Look at what the device does. If it is broken, suspend it until it is mended; if it needs more, raise that budget in the fleet's rules.",
			FalsePositives: "A gateway that speaks for many sensors with one identity. Give its fleet a larger budget.",
		},
		{
			Name: OperatorRefused, Title: "Refusals at the operators' API", Severity: countersign.SeverityMedium,
			Window: time.Hour, Threshold: 5, Again: 24 * time.Hour, Default: toAlert(),
			Sees:           "Wrong or revoked operator tokens from one address, or acts that the role of one operator does not allow. Tokens that have expired do not count.",
			Why:            "Tokens are tried out, or an operator, or another holder of the token, looks for what it can do.",
			Do:             "Compare the address with those of your people and programs. Ask the operator; if the token is in other hands, revoke it: countersign operator revoke.",
			FalsePositives: "A script that goes on with a token that was revoked. A person who tries what the role does not have.",
		},
	}
}

// serverRules are about the server itself.
func serverRules() []Rule {
	return []Rule{
		{
			Name: LogShortened, Title: "The end of the log was removed", Severity: countersign.SeverityCritical,
			Threshold: 1, Again: 24 * time.Hour, Default: toAlert(),
			Sees:           "The log ends before an event that was sealed, or that a detector has read. It is looked for at each start and while the log is read. What is written afterwards is numbered behind what was removed, so no event is passed over.",
			Why:            "An intruder who can write to the database removes what would show the break-in.",
			Do:             "Keep a copy of the database, compare it with a backup, and look at who can reach it. See what log verify says.",
			FalsePositives: "None while the database is one piece: a restored backup is short of both, the events and the record of their end.",
		},
		{
			Name: EmergencyHold, Title: "An act could not be recorded and is held by one node", Severity: countersign.SeverityCritical, Threshold: 1, Default: toAlert(),
			Sees:           "The database could not be written when an operator took something away from a device. The node that was asked holds the device back by itself until the act is on record.",
			Why:            "Until then the other nodes know nothing of it.",
			Do:             "Bring the database back. The hold is recorded by itself; until then cut the device off at the other nodes.",
			FalsePositives: "None.",
		},
		{
			Name: DatabaseLost, Title: "A node could not reach its database", Severity: countersign.SeverityHigh, Threshold: 1, Default: toAlert(),
			Sees:           "A node lost its database for a while. The event is written when it is back.",
			Why:            "Meanwhile nothing new is admitted, and what another node took away is learned afterwards.",
			Do:             "Look at the database and at the network to it.",
			FalsePositives: "A planned restart of the database.",
		},
		{
			Name: DatabaseRestored, Title: "The database was set back", Severity: countersign.SeverityCritical, Threshold: 1, Default: toAlert(),
			Sees:           "An operator accepted a database that is older than the last state that a node saw, or a node saw it go back while it ran, as by a failover to a standby that was behind. The evidence says which events and CRL numbers it lacks.",
			Why:            "Revocations that were recorded in between are lost: those certificates are good again.",
			Do:             "Find out what was recorded in between, from your own notes, from the log that you forward or from the last CRL that a relying party has. Revoke again.",
			FalsePositives: "None. It is not a fault where the restore was meant; it is work to do.",
		},
		{
			Name: WatermarkMissing, Title: "Nothing shows whether the database is as new as it was", Severity: countersign.SeverityHigh, Threshold: 1, Default: toAlert(),
			Sees:           "A node that kept the last state of the database that it saw has no such file any more, or an embedded database is on another machine or in another folder than before.",
			Why:            "A database that was set back, by a restore or to hide something, cannot be told from the newest one then.",
			Do:             "If the data folder was moved or restored, compare the newest revocations and the number of the last CRL with what you know. If not, find out who removed the file.",
			FalsePositives: "A data folder that was moved to another machine without it.",
		},
		{
			Name: ReserveInUse, Title: "The database has no space left", Severity: countersign.SeverityHigh, Threshold: 1, Again: time.Hour, Default: toAlert(),
			Sees:           "The disk of the embedded database is full, or its bound is reached. Revocations, suspensions and their alerts are recorded from a reserve; nothing else is.",
			Why:            "No device can enroll or connect for the first time, and the reserve has an end.",
			Do:             "Free space, or raise storage_limit. The reserve refills by itself.",
			FalsePositives: "None.",
		},
		{
			Name: SealingKeyReplaced, Title: "The sealing key was replaced", Severity: countersign.SeverityHigh, Threshold: 1, Default: toAlert(),
			Sees:           "An operator replaced the key that seals symmetric keys and SCRAM secrets, since the old one was lost.",
			Why:            "What was sealed with the old key cannot be opened: devices with symmetric keys, group keys or SCRAM secrets are refused, and access tokens are void.",
			Do:             "Give those devices new keys or secrets. Copy the new key to the other nodes.",
			FalsePositives: "None.",
		},
	}
}
