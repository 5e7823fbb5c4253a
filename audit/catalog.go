package audit

import (
	_ "embed"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/policy"
)

// Check is an entry of the catalog. docs/audit.md has more on each.
type Check struct {
	countersign.Rule
	Setting   string   // the fleet's threshold, as a path in its rules; empty: none
	Threshold string   // what holds without it
	Reasons   []string // reason codes
	Defender  bool     // AWS IoT Device Defender has the check, by this name
	// Risks are entries of the OWASP Non-Human Identities Top 10 of 2025, such as NHI7.
	Risks []string
}

// The names of the checks.
const (
	DeviceExpiring      = "DEVICE_CERTIFICATE_EXPIRING_CHECK"
	CAExpiring          = "CA_CERTIFICATE_EXPIRING_CHECK"
	DeviceAge           = "DEVICE_CERTIFICATE_AGE_CHECK"
	DeviceRevoked       = "REVOKED_DEVICE_CERTIFICATE_STILL_ACTIVE_CHECK"
	CARevoked           = "REVOKED_CA_CERTIFICATE_STILL_ACTIVE_CHECK"
	IntermediateRevoked = "INTERMEDIATE_CA_REVOKED_FOR_ACTIVE_DEVICE_CERTIFICATES_CHECK"
	CertificateShared   = "DEVICE_CERTIFICATE_SHARED_CHECK"
	ConflictingClients  = "CONFLICTING_CLIENT_IDS_CHECK"
	DeviceKeyQuality    = "DEVICE_CERTIFICATE_KEY_QUALITY_CHECK"
	CAKeyQuality        = "CA_CERTIFICATE_KEY_QUALITY_CHECK"
	LoggingDisabled     = "LOGGING_DISABLED_CHECK"
	PolicyPermissive    = policy.OverlyPermissive
	PolicyOdd           = policy.Misconfiguration

	CRLStale          = "CRL_STALE_CHECK"
	NeverConnected    = "DEVICE_NEVER_CONNECTED_CHECK"
	Inactive          = "DEVICE_INACTIVE_CHECK"
	Orphaned          = "DEVICE_ORPHANED_CHECK"
	Offboarding       = "DEVICE_OFFBOARDING_CHECK"
	KeyReused         = "DEVICE_KEY_REUSED_CHECK"
	SecretShared      = "DEVICE_SECRET_SHARED_CHECK"
	ClaimUnbounded    = "CLAIM_CREDENTIAL_UNBOUNDED_CHECK"
	CredentialLeaked  = "CREDENTIAL_LEAKED_CHECK" //nolint:gosec // a name
	SecretAge         = "SECRET_AGE_CHECK"        //nolint:gosec // a name
	WeakAuthenticated = "FLEET_WEAK_AUTHENTICATION_CHECK"
	OperatorToken     = "OPERATOR_TOKEN_STALE_CHECK"
)

// The defaults of the thresholds, those of AWS where it has the check.
const (
	defaultExpiring  = 30 * 24 * time.Hour
	defaultMaxAge    = 365 * 24 * time.Hour
	defaultSecretAge = 365 * 24 * time.Hour
	defaultUnused    = 30 * 24 * time.Hour
	defaultInactive  = 180 * 24 * time.Hour
)

//go:embed checks.txt
var text string // read once, by catalog

// catalog returns all checks by name.
var catalog = sync.OnceValue(func() map[string]Check {
	checks := map[string]Check{}
	for r, fields := range detect.Entries(text) {
		r.Default = []countersign.Mitigation{countersign.MitigateAlert}
		if r.Severity.Rank() <= countersign.SeverityLow.Rank() {
			r.Default = []countersign.Mitigation{countersign.MitigateNote} // it is shown with the audit
		}
		checks[r.Name] = Check{
			Rule: r, Setting: fields["threshold"], Threshold: fields["without"], Reasons: strings.Fields(fields["reasons"]),
			Defender: fields["aws"] == "yes", Risks: strings.Fields(fields["risks"]),
		}
	}
	return checks
})

// Checks lists all checks by name.
func Checks() []Check {
	return slices.SortedFunc(maps.Values(catalog()), func(a, b Check) int { return strings.Compare(a.Name, b.Name) })
}

// named returns the checks of those names, each once; all for none.
func named(names []string) ([]Check, error) {
	if len(names) == 0 {
		return Checks(), nil
	}
	var list []Check
	for _, n := range slices.Compact(slices.Sorted(slices.Values(names))) {
		c, ok := catalog()[n]
		if !ok {
			return nil, countersign.Errorf(countersign.NotFound, "there is no audit check %.100q", n).WithNext("look for it in the list of checks")
		}
		list = append(list, c)
	}
	return list, nil
}
