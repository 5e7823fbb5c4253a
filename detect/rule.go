package detect

import (
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

// Rule is one entry of the catalog: what a detector looks for, when it speaks, and
// what a person reads about it.
type Rule struct {
	Name     string
	Title    string
	Severity countersign.Severity // of most of its findings; the texts name exceptions
	// Window is over how long what it sees counts together; zero: each event by itself.
	Window time.Duration
	// Threshold is how many it takes within the window.
	Threshold int
	// Again is how soon it speaks again about the same subject; zero: at each event.
	Again time.Duration
	// Default is what follows where a fleet's rules say nothing.
	Default        []countersign.Mitigation
	Sees           string // what makes a finding
	Why            string // why it matters
	Do             string // what to do about it
	FalsePositives string // when it is wrong
}

// The names of the rules.
const (
	SharedCertificate      = "shared_certificate"
	ClientIDConflict       = "client_id_conflict"
	RenewalFork            = "renewal_fork"
	ConnectAfterRevocation = "connect_after_revocation"
	ConnectAfterSuspension = "connect_after_suspension"
	ConnectAfterExpiry     = "connect_after_expiry"
	UnknownIssuer          = "unknown_issuer"
	WrongSecret            = "wrong_secret"
	SecretSpraying         = "secret_spraying"
	DeviceProbing          = "device_probing"
	SecretGuessing         = "secret_guessing"
	NewAddressCrowd        = "new_address_crowd"
	DeniedTopics           = "denied_topics"
	UnusualEnrollment      = "unusual_enrollment"
	IdentityChange         = "identity_change"
	ClockSkew              = "clock_skew"
	ClaimMisuse            = "claim_misuse"
	GroupKeyLeaked         = "group_key_leaked"
	KeyReused              = "key_reused"
	SharedFactor           = "shared_factor"
	AddressBlocked         = "address_blocked"
	EventsLost             = "events_lost"
	BudgetExceeded         = "budget_exceeded"
	OperatorRefused        = "operator_refused"
	LogShortened           = "log_shortened"
	EmergencyHold          = "emergency_hold"
	DatabaseLost           = "database_lost"
	DatabaseRestored       = "database_restored"
	WatermarkMissing       = "watermark_missing"
	ReserveInUse           = "reserve_in_use"
	SealingKeyReplaced     = "sealing_key_replaced"
)

// Rules lists the catalog by name.
func Rules() []Rule {
	list := slices.Concat(identityRules(), doorRules(), secretRules(), limitRules(), recordedRules(), serverRules())
	slices.SortFunc(list, func(a, b Rule) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// RuleOf gives the rule of that name.
func RuleOf(name string) (Rule, bool) {
	for _, r := range Rules() {
		if r.Name == name {
			return r, true
		}
	}
	return Rule{}, false
}

func toNote() []countersign.Mitigation { return []countersign.Mitigation{countersign.MitigateNote} }

func toAlert() []countersign.Mitigation { return []countersign.Mitigation{countersign.MitigateAlert} }
