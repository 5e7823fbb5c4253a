package audit

import (
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
)

// Check describes a check. docs/audit.md says more of each.
type Check struct {
	Name     string
	Severity countersign.Severity // of its findings, unless one has its own
	Title    string
	Why      string   // it matters
	Fix      string   // what to do about a finding
	Setting  string   // the fleet's threshold, as a path in its rules; empty: none
	Default  string   // of that threshold
	Reasons  []string // reason codes
	Defender bool     // AWS IoT Device Defender has the check, by this name
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

// catalog holds all checks by name.
var catalog = byName([]Check{
	{
		Name: DeviceExpiring, Severity: countersign.SeverityMedium, Defender: true, Risks: []string{"NHI7"},
		Title:   "Device certificates that end soon, or have ended",
		Why:     "a device that does not renew in time is locked out, and nobody may be near it",
		Fix:     "look at the device's timeline for why it does not renew; after the end it needs the recovery door or a new token",
		Setting: "audit.expiring", Default: "720h, for certificates that live less than 150 days a fifth of their life",
		Reasons: []string{"CERTIFICATE_APPROACHING_EXPIRATION", "CERTIFICATE_PAST_EXPIRATION"},
	},
	{
		Name: CAExpiring, Severity: countersign.SeverityMedium, Defender: true,
		Title:   "Authorities whose certificate ends soon, or has ended",
		Why:     "with an authority every certificate below it ends",
		Fix:     "found a successor and move the fleets to it; register the new certificate of an external CA",
		Setting: "audit.expiring", Default: "720h",
		Reasons: []string{"CERTIFICATE_APPROACHING_EXPIRATION", "CERTIFICATE_PAST_EXPIRATION"},
	},
	{
		Name: DeviceAge, Severity: countersign.SeverityLow, Defender: true, Risks: []string{"NHI7"},
		Title:   "Device certificates in use for too long",
		Why:     "the longer a key is in use, the more hands it may have passed through",
		Fix:     "renew with a new key, and give the profile a shorter validity",
		Setting: "audit.max_age", Default: "8760h",
		Reasons: []string{"CERTIFICATE_PAST_AGE_THRESHOLD"},
	},
	{
		Name: DeviceRevoked, Severity: countersign.SeverityMedium, Defender: true, Risks: []string{"NHI1"},
		Title:   "Certificates that their CA revoked and that still count here, and sessions on revoked ones",
		Why:     "whoever has the key of a revoked certificate is most likely not its owner",
		Fix:     "revoke the device; for a session that outlived its certificate, restart the node and tell us",
		Reasons: []string{"CERTIFICATE_REVOKED_BY_ISSUER", "REVOKED_CERTIFICATE_IN_SESSION"},
	},
	{
		Name: CARevoked, Severity: countersign.SeverityCritical, Defender: true, Risks: []string{"NHI3"},
		Title:   "Authorities that their own issuer revoked",
		Why:     "whoever has the key of a revoked CA can make a certificate in the name of any device",
		Fix:     "take the authority out of the fleets' rules, and look at every device that came in by it",
		Reasons: []string{"CERTIFICATE_REVOKED_BY_ISSUER"},
	},
	{
		Name: IntermediateRevoked, Severity: countersign.SeverityCritical, Defender: true, Risks: []string{"NHI3"},
		Title:   "Active device certificates below a CA that was revoked",
		Why:     "what a revoked CA signed proves nothing",
		Fix:     "give the devices certificates of another CA, then revoke the old ones",
		Reasons: []string{"INTERMEDIATE_CA_REVOKED_BY_ISSUER"},
	},
	{
		Name: CertificateShared, Severity: countersign.SeverityCritical, Defender: true, Risks: []string{"NHI9", "NHI2"},
		Title:   "One certificate in several sessions at once, from different addresses",
		Why:     "somebody has copied the private key: of two holders one is not the device",
		Fix:     "suspend the device, find out which one is real, and enroll that one anew",
		Reasons: []string{"CERTIFICATE_SHARED_BY_MULTIPLE_DEVICES"},
	},
	{
		Name: ConflictingClients, Severity: countersign.SeverityHigh, Defender: true, Risks: []string{"NHI9"},
		Title:   "Clients that push each other out under one client id",
		Why:     "both lose their messages, and one of them may be a copy",
		Fix:     "give each program its own client id behind the device id; if there is one program only, treat it as a clone",
		Reasons: []string{"DUPLICATE_CLIENT_ID_ACROSS_CONNECTIONS"},
	},
	{
		Name: DeviceKeyQuality, Severity: countersign.SeverityCritical, Defender: true, Risks: []string{"NHI4"},
		Title:   "Device certificates over keys whose private half can be found out",
		Why:     "anybody can compute the private key from the certificate and be the device",
		Fix:     "have the device make a new key with a current library, enroll it, revoke the old certificate",
		Reasons: append(keyReasons(), "CERTIFICATE_KEY_SHARES_PRIME"),
	},
	{
		Name: CAKeyQuality, Severity: countersign.SeverityCritical, Defender: true, Risks: []string{"NHI4"},
		Title:   "Authorities with keys whose private half can be found out",
		Why:     "anybody can compute the private key of the authority and make devices",
		Fix:     "trust nothing that it signed: found or register another authority and move the fleets",
		Reasons: keyReasons(),
	},
	{
		Name: LoggingDisabled, Severity: countersign.SeverityLow, Defender: true,
		Title:   "A log that lost lines, is not sealed in time, or does not fit its seal",
		Why:     "what the log does not hold, or cannot vouch for, cannot be proved later",
		Fix:     "for a broken chain keep a copy of the database and compare with a backup; else look at the disk and at who floods the gateways",
		Reasons: []string{"LOGGING_DISABLED", "LOG_SEALING_BEHIND", "LOG_CHAIN_BROKEN", "DATABASE_RESTORED"},
	},
	{
		Name: PolicyPermissive, Severity: countersign.SeverityCritical, Defender: true, Risks: []string{"NHI5"},
		Title:   "Policies that let a device reach what is not its own",
		Why:     "one stolen device can then speak and listen for all of them",
		Fix:     "bind the filters to ${device.id}; try it with: countersign policy check",
		Reasons: []string{"ALLOWS_BROAD_ACCESS_TO_IOT_DATA_PLANE_ACTIONS"},
	},
	{
		Name: PolicyOdd, Severity: countersign.SeverityMedium, Defender: true, Risks: []string{"NHI5"},
		Title: "Policies that do not say what their author can have meant",
		Why:   "a statement without effect is taken for protection that is not there",
		Fix:   "correct the statement and give the policy a test; see: countersign policy check",
		Reasons: []string{
			"POLICY_UNREADABLE", "WILDCARD_INSIDE_LEVEL", "WILDCARD_IN_CLIENT", "DENY_WITHOUT_EFFECT", "VARIABLE_WITHOUT_VALUE",
			"SUBSCRIBE_WITHOUT_RECEIVE", "RETAIN_WITHOUT_PUBLISH", "NOBODY_CONNECTS",
		},
	},
	{
		Name: CRLStale, Severity: countersign.SeverityHigh,
		Title:   "Revocation lists that are out of date",
		Why:     "relying parties refuse everything below an authority with a stale list, or learn of no revocation",
		Fix:     "look in the server's log for why it does not publish; fetch the new list of an external CA: countersign ca crl-set",
		Reasons: []string{"CRL_PAST_NEXT_UPDATE", "CRL_PUBLICATION_LATE", "CRL_NEVER_PUBLISHED"},
	},
	{
		Name: NeverConnected, Severity: countersign.SeverityLow, Risks: []string{"NHI1"},
		Title:   "Devices that got an identity and never used it",
		Why:     "an identity that nobody uses is missed by nobody when it is stolen",
		Fix:     "find out where they are; revoke what nobody can find",
		Setting: "audit.unused", Default: "720h",
		Reasons: []string{"DEVICE_NEVER_CONNECTED"},
	},
	{
		Name: Inactive, Severity: countersign.SeverityLow, Risks: []string{"NHI1"},
		Title:   "Devices with an identity that were not seen for long",
		Why:     "equipment that was scrapped or sold takes its identity along",
		Fix:     "retire what is gone, suspend what rests",
		Setting: "audit.inactive", Default: "4320h",
		Reasons: []string{"DEVICE_PAST_INACTIVITY_THRESHOLD"},
	},
	{
		Name: Orphaned, Severity: countersign.SeverityLow, Risks: []string{"NHI1"},
		Title:   "Devices that nobody answers for",
		Why:     "nobody notices that it is misused, and nobody will retire it",
		Fix:     "give each device an owner, or retire it",
		Reasons: []string{"DEVICE_WITHOUT_OWNER"},
	},
	{
		Name: Offboarding, Severity: countersign.SeverityHigh, Risks: []string{"NHI1"},
		Title:   "Retired devices that still have something to come in with",
		Why:     "what is retired must have nothing left to come in with",
		Fix:     "stop the credential or secret; retire does so by itself, so tell us how it came about",
		Reasons: []string{"RETIRED_DEVICE_HAS_CERTIFICATE", "RETIRED_DEVICE_HAS_SECRET", "RETIRED_DEVICE_HAS_CREDENTIAL"},
	},
	{
		Name: KeyReused, Severity: countersign.SeverityHigh, Risks: []string{"NHI9"},
		Title:   "One public key in certificates of several devices",
		Why:     "one of these devices can be all of them",
		Fix:     "have each device make its own key; revoke the certificates over the common one",
		Reasons: []string{"PUBLIC_KEY_SHARED_BY_MULTIPLE_DEVICES"},
	},
	{
		Name: SecretShared, Severity: countersign.SeverityCritical, Risks: []string{"NHI9", "NHI2"},
		Title:   "One secret in several sessions at once, from different addresses",
		Why:     "somebody has copied the secret: of two holders one is not the device",
		Fix:     "suspend the device, replace its secret, find out where the old one got out",
		Reasons: []string{"SECRET_SHARED_BY_MULTIPLE_DEVICES"},
	},
	{
		Name: ClaimUnbounded, Severity: countersign.SeverityMedium, Risks: []string{"NHI5", "NHI7"},
		Title:   "Enrollment credentials for many devices without bounds",
		Why:     "once it leaks, it makes devices for anybody, anywhere, for long",
		Fix:     "replace it by one with fewer uses, networks, device patterns and a near end, then stop it",
		Reasons: []string{"CREDENTIAL_WITHOUT_BOUNDS"},
	},
	{
		Name: CredentialLeaked, Severity: countersign.SeverityCritical, Risks: []string{"NHI2"},
		Title:   "Enrollment credentials that were seen in wrong hands and still work",
		Why:     "whoever has it can make devices of the fleet",
		Fix:     "stop the credential: countersign enroll stop; look at what enrolled with it",
		Reasons: []string{"CREDENTIAL_SEEN_IN_WRONG_HANDS"},
	},
	{
		Name: SecretAge, Severity: countersign.SeverityMedium, Risks: []string{"NHI7"},
		Title:   "Secrets and enrollment keys that were not replaced for too long",
		Why:     "the longer a secret is in use, the more files, logs and people know it",
		Fix:     "rotate the secret; replace the enrollment key",
		Setting: "audit.secret_age", Default: "8760h",
		Reasons: []string{"SECRET_PAST_AGE_THRESHOLD", "ENROLLMENT_KEY_PAST_AGE_THRESHOLD"},
	},
	{
		Name: WeakAuthenticated, Severity: countersign.SeverityMedium, Risks: []string{"NHI4"},
		Title:   "Fleets that admit guests, or passwords that people chose",
		Why:     "what a person chose can be guessed, and a guest is anybody",
		Fix:     "take guests and password out of the fleet's access rules; give devices certificates or secrets made by the server",
		Reasons: []string{"FLEET_ADMITS_GUESTS", "FLEET_ACCEPTS_PASSWORDS"},
	},
	{
		Name: OperatorToken, Severity: countersign.SeverityMedium, Risks: []string{"NHI1", "NHI5", "NHI7"},
		Title:   "Operator tokens that nobody uses, or that live long with the right to do everything",
		Why:     "a token that lies about is found by somebody else",
		Fix:     "revoke it: countersign operator revoke ID; make one with less life and a smaller role",
		Reasons: []string{"OPERATOR_TOKEN_UNUSED", "OPERATOR_TOKEN_LONG_LIVED"},
	},
})

func keyReasons() []string {
	return []string{
		"CERTIFICATE_KEY_VULNERABILITY_CVE-2008-0166", "CERTIFICATE_KEY_VULNERABILITY_CVE-2017-15361", "CERTIFICATE_KEY_TOO_SMALL", "CERTIFICATE_KEY_WEAK",
	}
}

func byName(list []Check) map[string]Check {
	m := make(map[string]Check, len(list))
	for _, c := range list {
		m[c.Name] = c
	}
	return m
}

// Checks lists all checks by name.
func Checks() []Check {
	list := make([]Check, 0, len(catalog))
	for _, c := range catalog {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b Check) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// named gives the checks of those names, each once; all for none.
func named(names []string) ([]Check, error) {
	if len(names) == 0 {
		return Checks(), nil
	}
	var list []Check
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	for _, n := range names {
		c, ok := catalog[n]
		if !ok {
			return nil, countersign.Errorf(countersign.NotFound, "there is no audit check %.100q", n).WithNext("list them with: countersign audit checks")
		}
		list = append(list, c)
	}
	return list, nil
}

// stages gives the checks by the rows that they look at.
func stages() []stage {
	return []stage{
		{[]string{CAExpiring, CARevoked, CAKeyQuality, CRLStale}, lookAtAuthorities},
		{[]string{DeviceExpiring, DeviceAge, DeviceRevoked, IntermediateRevoked, DeviceKeyQuality}, lookAtCertificates},
		{[]string{KeyReused}, lookAtKeys},
		{[]string{NeverConnected, Inactive, Orphaned, Offboarding}, lookAtDevices},
		{[]string{ClaimUnbounded, CredentialLeaked}, lookAtCredentials},
		{[]string{SecretAge}, lookAtSecrets},
		{[]string{WeakAuthenticated}, lookAtFleets},
		{[]string{PolicyPermissive, PolicyOdd}, lookAtPolicies},
		{[]string{OperatorToken}, lookAtOperatorTokens},
		{[]string{CertificateShared, SecretShared, ConflictingClients}, lookAtShared},
		{[]string{LoggingDisabled}, lookAtLog},
	}
}
