package countersign

import (
	"regexp"
	"strings"
	"time"
)

// DeviceState is the state of a device in its life cycle. Package registry has the
// table of allowed transitions.
type DeviceState string

// The states of a device.
const (
	DeviceRegistered DeviceState = "registered" // known, holds no certificate yet
	DevicePending    DeviceState = "pending"    // asked for a certificate, awaits approval
	DeviceActive     DeviceState = "active"     // holds an identity
	DeviceSuspended  DeviceState = "suspended"  // identity on hold, can be resumed
	DeviceRetired    DeviceState = "retired"    // end of life, for good
)

// Device is one piece of equipment with one identity.
type Device struct {
	ID        string
	Fleet     string
	State     DeviceState
	Reason    string // why it is in this state; empty where the state needs no reason
	Owner     string // person or team that is responsible for it; may be empty
	Purpose   string // what it is for; may be empty
	Tags      map[string]string
	CreatedAt time.Time
	UpdatedAt time.Time
	LastSeen  time.Time // last accepted connection; zero if never
	LastAddr  string    // remote address of LastSeen
}

// Fleet is the group a device belongs to. It names the authority that issues to
// the group, the profile of the certificates and the rules that apply to them.
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

// DefaultOverlap is how long a device may still use the certificate that a new one
// superseded: a day is enough for a device that tries the new one before it deletes the old.
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

// CheckDeviceID reports whether id can name a new device: 1 to 128 of A-Z a-z 0-9
// . _ : - and what every grammar that an id is put into allows. "." and ".." are
// not segments of a path (RFC 3986, 3.3; SPIFFE ID, 2.2), and an argument that
// begins with a hyphen is an option to most programs. It refuses with BadRequest.
func CheckDeviceID(id string) error {
	var why string
	switch {
	case !IsDeviceID(id):
		why = "is not 1 to 128 of A-Z a-z 0-9 . _ : -"
	case id == "." || id == "..":
		why = "is a relative path"
	case id[0] == '-':
		why = "begins with a hyphen"
	default:
		return nil
	}
	return Errorf(BadRequest, "device id %.140q %s", id, why).WithNext("choose another id")
}

// IsDeviceID reports whether id has the form that every device id has, also those
// that were registered before CheckDeviceID refused them. It is for looking devices up,
// since it must stay possible to revoke such a device.
func IsDeviceID(id string) bool { return deviceID.MatchString(id) }

// CheckDevice reports whether id can name a new device of the fleet: CheckDeviceID,
// and in a fleet with a trust domain no colon, since the id becomes a segment of a
// SPIFFE ID (SPIFFE ID, 2.2). It refuses with BadRequest.
func CheckDevice(fleet Fleet, id string) error {
	if err := CheckDeviceID(id); err != nil {
		return err
	}
	if fleet.TrustDomain != "" && strings.Contains(id, ":") {
		return Errorf(BadRequest, "device id %.140q has a colon, which the SPIFFE ids of fleet %s cannot have", id, fleet.Name).
			WithNext("choose an id without colons, or a fleet without a trust domain")
	}
	return nil
}

// FoldDeviceID returns the form in which two device ids are compared that a person,
// or a service that ignores case, would take for one. Ids are ASCII.
func FoldDeviceID(id string) string { return strings.ToLower(id) }

// CheckName reports whether s can name a fleet, a profile or an authority: a DNS
// label (RFC 1035, 2.3.1), since such names are used in URLs and URNs.
func CheckName(s string) error {
	if !name.MatchString(s) {
		return Errorf(BadRequest, "name %.80q is not 1 to 63 of a-z 0-9 and inner hyphens", s).
			WithNext("choose another name")
	}
	return nil
}

// DeviceURI returns the URI that names a device in its certificate (RFC 5280,
// 4.2.1.6): a SPIFFE id where the fleet has a trust domain, else our URN.
func DeviceURI(fleet Fleet, id string) string {
	if fleet.TrustDomain != "" {
		return "spiffe://" + fleet.TrustDomain + "/" + fleet.Name + "/" + id
	}
	return "urn:countersign:device:" + fleet.Name + ":" + id
}
