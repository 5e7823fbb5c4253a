package detect

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

// Rule is one entry of the catalog: what a detector looks for and when it reports it.
type Rule struct {
	countersign.Rule
	rate
	Sees           string // what leads to a finding
	FalsePositives string // when a finding is wrong
}

// rate is how often events lead to a finding.
type rate struct {
	// Window is the time within which events count together; zero: each event by itself.
	Window time.Duration
	// Threshold is the number of events within the window that make a finding.
	Threshold int
	// Again is the time until the same subject is reported again; zero: at each event.
	Again time.Duration
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

// Rules returns the catalog, sorted by name.
func Rules() []Rule {
	rates := rates()
	var list []Rule
	for r, fields := range Entries(facts().Replace(text)) {
		rule := Rule{Rule: r, rate: rate{Threshold: 1}, Sees: fields["sees"], FalsePositives: fields["wrong"]}
		if own, ok := rates[r.Name]; ok {
			rule.rate = own
		}
		list = append(list, rule)
	}
	slices.SortFunc(list, func(a, b Rule) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// facts replaces the names of constants in the texts of the catalog.
func facts() *strings.Replacer {
	return strings.NewReplacer("{overlapFor}", span(overlapFor), "{partyWindow}", span(partyWindow), "{minReturns}", strconv.Itoa(minReturns), "{learning}", span(learning))
}

// rates returns the rates of the rules that do not report each event.
func rates() map[string]rate {
	const day = 24 * time.Hour
	return map[string]rate{
		SharedCertificate:      {overlapFor, 2, time.Hour},
		ClientIDConflict:       {10 * time.Minute, 3, time.Hour},
		IdentityChange:         {memory, 1, day},
		NewAddressCrowd:        {time.Hour, 10, day},
		UnusualEnrollment:      {0, 1, day},
		ConnectAfterRevocation: {0, 1, day},
		ConnectAfterSuspension: {0, 1, day},
		ConnectAfterExpiry:     {0, 1, day},
		UnknownIssuer:          {time.Hour, 3, day},
		WrongSecret:            {time.Hour, 5, day},
		SecretSpraying:         {day, 5, day},
		DeviceProbing:          {time.Hour, 5, day},
		DeniedTopics:           {5 * time.Minute, 20, day},
		ClockSkew:              {day, 3, 7 * day},
		BudgetExceeded:         {0, 1, day},
		OperatorRefused:        {time.Hour, 5, day},
		LogShortened:           {0, 1, day},
		ReserveInUse:           {0, 1, time.Hour},
	}
}
