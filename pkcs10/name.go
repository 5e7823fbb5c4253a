package pkcs10

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"

	"golang.org/x/crypto/cryptobyte"

	"github.com/countersign-iot/countersign"
)

// MaxNames is the most attributes in one subject. Requests name up to ten; the
// bound keeps what a request costs in memory near its own size.
const MaxNames = 256

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// readSubject reads a subject. Only the common name is used: it must be there
// at most once and be a string of its type. Everything else is parsed as far as
// possible, for policies and people.
func readSubject(e element) (pkix.Name, error) {
	var rdns pkix.RDNSequence
	var name pkix.Name
	var common []string
	total := 0
	for sets := (list{e.body}); !sets.empty(); {
		set, err := sets.nextOf(tagSet)
		if err != nil {
			return name, malformed("subject", err)
		}
		var rdn pkix.RelativeDistinguishedNameSET
		for pairs := (list{set.body}); !pairs.empty(); {
			if total++; total > MaxNames {
				return name, countersign.Errorf(countersign.BadRequest, "the subject of the certification request has more than %d attributes", MaxNames).
					WithNext("leave out of the subject what does not name the device")
			}
			id, value, err := readPair(&pairs)
			if err != nil {
				return name, malformed("subject", err)
			}
			if id.Equal(oidCommonName) {
				cn, err := readString(value)
				if err != nil {
					return name, malformed("common name", err)
				}
				common = append(common, cn)
			}
			rdn = append(rdn, pkix.AttributeTypeAndValue{Type: id, Value: showString(value)})
		}
		if len(rdn) > 0 {
			rdns = append(rdns, rdn)
		}
	}
	for _, cn := range common {
		if cn != common[0] {
			return name, countersign.Errorf(countersign.BadRequest, "the certification request has two common names, %.140q and %.140q", common[0], cn).
				WithNext("keep the one that is the device id")
		}
	}
	name.FillFromRDNSequence(&rdns)
	return name, nil
}

// readPair reads one AttributeTypeAndValue (RFC 5280, 4.1.2.4).
func readPair(in *list) (asn1.ObjectIdentifier, element, error) {
	seq, err := in.nextOf(tagSequence)
	if err != nil {
		return nil, element{}, err
	}
	parts := list{seq.body}
	id, err := readOID(&parts)
	if err != nil {
		return nil, element{}, err
	}
	value, err := parts.next()
	return id, value, err
}

var errOID = errors.New("an object identifier in it is malformed")

// readOID reads an OBJECT IDENTIFIER, the arcs of which must fit an int32.
func readOID(in *list) (asn1.ObjectIdentifier, error) {
	e, err := in.nextOf(tagOID)
	if err != nil {
		return nil, err
	}
	var id asn1.ObjectIdentifier
	der := cryptobyte.String(encodeDER(tagOID, e.body))
	if !der.ReadASN1ObjectIdentifier(&id) {
		return nil, errOID
	}
	return id, nil
}

// malformed is the refusal of a request whose part cannot be read.
func malformed(part string, cause error) error {
	return countersign.Errorf(countersign.BadRequest, "the %s of the certification request is malformed: %v", part, cause).
		WithNext("make a new request as PKCS #10 in DER (RFC 2986)").WithCause(cause)
}
