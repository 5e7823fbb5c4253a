package attest

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
)

// IDField is the part of a manufacturer's certificate that names the device.
type IDField string

// The fields. All but the last two are text and must occur exactly once.
const (
	IDCommonName   IDField = "common_name"       // subject CN
	IDSerialNumber IDField = "serial_number"     // subject serialNumber, where IEEE 802.1AR puts the device's
	IDDNSName      IDField = "dns"               // SAN dNSName
	IDURI          IDField = "uri"               // SAN URI
	IDEmail        IDField = "email"             // SAN rfc822Name
	IDHWSerial     IDField = "hardware_serial"   // SAN HardwareModuleName (RFC 4108, 5): hwSerialNum, as text
	IDHWModule     IDField = "hardware_module"   // the same: hwType, colon, hwSerialNum in hex; distinguishes manufacturers
	IDKeyHash      IDField = "public_key_sha256" // hex SHA-256 of the SubjectPublicKeyInfo
)

var (
	oidCommonName         = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSerialNumber       = asn1.ObjectIdentifier{2, 5, 4, 5}
	oidHardwareModuleName = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4}
)

// IDRule is a fleet's setting of how a certificate names its device.
type IDRule struct {
	Field IDField
	// Prefix and Suffix surround the id in the field, such as "urn:dev:ops:" or
	// "@devices.example.com". A value without them is refused: they are part of
	// what distinguishes one CA's devices from another's.
	Prefix string
	Suffix string
}

// Check reports whether the rule can be applied at all. Errors have code BadRequest.
func (r IDRule) Check() error {
	switch r.Field {
	case IDCommonName, IDSerialNumber, IDDNSName, IDURI, IDEmail, IDHWSerial, IDHWModule, IDKeyHash:
		return nil
	}
	return countersign.Errorf(countersign.BadRequest, "%.40q is no field of a certificate that can name a device", r.Field).
		WithNext("use common_name, serial_number, dns, uri, email, hardware_serial, hardware_module or public_key_sha256")
}

// DeviceID returns the device id in a certificate whose path is valid. Nothing is
// converted, shortened or guessed, because two names with the same result would be
// two devices with one identity. Errors have code Misconfigured where
// the certificate has no such field, several, or one that cannot be a device id.
func (r IDRule) DeviceID(c *x509.Certificate) (string, error) {
	if err := r.Check(); err != nil {
		return "", err
	}
	values, err := r.values(c)
	if err != nil {
		return "", err
	}
	if len(values) != 1 {
		return "", r.refuse("has %d values of %s, and exactly one must name the device", len(values), r.Field)
	}
	id, ok1 := strings.CutPrefix(values[0], r.Prefix)
	id, ok2 := strings.CutSuffix(id, r.Suffix)
	if !ok1 || !ok2 {
		return "", r.refuse("has a %s that does not begin and end as set", r.Field)
	}
	if err := countersign.CheckDeviceID(id); err != nil {
		return "", r.refuse("has a %s that cannot be a device id: %v", r.Field, err).WithCause(err)
	}
	return id, nil
}

func (r IDRule) refuse(format string, args ...any) *countersign.Error {
	return countersign.Errorf(countersign.Misconfigured, "the device's certificate "+format, args...).
		WithNext("choose the field that names the device in the fleet's settings")
}

func (r IDRule) values(c *x509.Certificate) ([]string, error) {
	switch r.Field {
	case IDCommonName:
		return subjectValues(c, oidCommonName), nil
	case IDSerialNumber:
		return subjectValues(c, oidSerialNumber), nil
	case IDKeyHash:
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		return []string{hex.EncodeToString(sum[:])}, nil
	}
	names, ok := altNames(c)
	if !ok {
		return nil, r.refuse("has a malformed subjectAltName")
	}
	tag, isText := map[IDField]int{IDDNSName: tagDNS, IDURI: tagURI, IDEmail: tagEmail}[r.Field]
	var values []string
	for _, n := range names {
		switch {
		case isText && n.tag == tag:
			values = append(values, string(n.value))
		case !isText && n.tag == tagOtherName:
			module, isModule, ok := readHardwareModule(n.value, r.Field)
			if !ok {
				return nil, r.refuse("has a malformed HardwareModuleName")
			}
			if isModule {
				values = append(values, module)
			}
		}
	}
	return values, nil
}

// subjectValues returns all values of an attribute. crypto/x509's CommonName is the
// last of several, which would let a CA's customer add one of his own.
func subjectValues(c *x509.Certificate, oid asn1.ObjectIdentifier) []string {
	var values []string
	for _, a := range c.Subject.Names {
		if a.Type.Equal(oid) {
			text, _ := a.Value.(string)
			values = append(values, text)
		}
	}
	return values
}

// readHardwareModule reads the content of an otherName, if it is a HardwareModuleName (RFC
// 4108, 5), and returns the text of the field.
func readHardwareModule(value []byte, field IDField) (text string, isModule, ok bool) {
	s := cryptobyte.String(value)
	var name, kind asn1.ObjectIdentifier
	if !s.ReadASN1ObjectIdentifier(&name) {
		return "", false, false
	}
	if !name.Equal(oidHardwareModuleName) {
		return "", false, true
	}
	var explicit, seq, serial cryptobyte.String
	if !s.ReadASN1(&explicit, tag0) || !s.Empty() ||
		!explicit.ReadASN1(&seq, cbasn1.SEQUENCE) || !explicit.Empty() ||
		!seq.ReadASN1ObjectIdentifier(&kind) || !seq.ReadASN1(&serial, cbasn1.OCTET_STRING) || !seq.Empty() || len(serial) == 0 {
		return "", true, false
	}
	if field == IDHWModule {
		return kind.String() + ":" + hex.EncodeToString(serial), true, true
	}
	return string(serial), true, true
}
