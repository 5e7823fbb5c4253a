package countersign

import (
	"regexp"
	"time"
)

// DeviceState is where a device stands in its life. Package registry holds the
// table of allowed moves.
type DeviceState string

// The states of a device.
const (
	DeviceRegistered DeviceState = "registered" // known, holds no certificate yet
	DevicePending    DeviceState = "pending"    // asked for a certificate, awaits approval
	DeviceActive     DeviceState = "active"     // holds an identity
	DeviceSuspended  DeviceState = "suspended"  // identity on hold, can come back
	DeviceRetired    DeviceState = "retired"    // end of life, for good
)

// Device is one piece of equipment with one identity.
type Device struct {
	ID        string
	Fleet     string
	State     DeviceState
	Reason    string // why the state is what it is; empty where the state says it all
	Owner     string // person or team that answers for it; may be empty
	Tags      map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
	LastSeen  time.Time // last accepted connection; zero if never
	LastAddr  string    // remote address of LastSeen
}

// Fleet is the group a device belongs to. It names the authority that issues to
// the group, the profile of the certificates and the rules they live by.
type Fleet struct {
	Name        string
	Issuer      string        // authority id
	Profile     string        // profile name
	Methods     []Method      // that may enroll
	Overlap     time.Duration // how long a superseded certificate is still accepted
	TrustDomain string        // SPIFFE trust domain; empty: the urn form names the device
	Rules       Rules         // bounds of enrollment
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// DefaultOverlap is how long a device may keep using the certificate that a new
// one superseded: a day lets both halves of a cautious swap finish.
const DefaultOverlap = 24 * time.Hour

// DefaultFleet is the fleet of a device that names none.
const DefaultFleet = "default"

// MaxDeviceID is the longest device id; it must fit the common name of a
// certificate next to nothing else and an MQTT topic level.
const MaxDeviceID = 128

var (
	deviceID = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)
	name     = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$`)
)

// CheckDeviceID says whether id can name a device: 1-128 of A-Z a-z 0-9 . _ : -
func CheckDeviceID(id string) error {
	if !deviceID.MatchString(id) {
		return Errorf(BadRequest, "device id %.140q is not 1 to 128 of A-Z a-z 0-9 . _ : -", id).
			WithNext("choose another id")
	}
	return nil
}

// CheckName says whether s can name a fleet, a profile or an authority: a DNS
// label (RFC 1035, 2.3.1), since such names stand in URLs and URNs.
func CheckName(s string) error {
	if !name.MatchString(s) {
		return Errorf(BadRequest, "name %.80q is not 1 to 63 of a-z 0-9 and inner hyphens", s).
			WithNext("choose another name")
	}
	return nil
}

// DeviceURI is the URI that names a device in its certificate (RFC 5280,
// 4.2.1.6): a SPIFFE id where the fleet has a trust domain, else our URN.
func DeviceURI(fleet Fleet, id string) string {
	if fleet.TrustDomain != "" {
		return "spiffe://" + fleet.TrustDomain + "/" + fleet.Name + "/" + id
	}
	return "urn:countersign:device:" + fleet.Name + ":" + id
}
