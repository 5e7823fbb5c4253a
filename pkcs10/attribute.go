package pkcs10

import (
	"encoding/asn1"
	"fmt"

	"github.com/countersign-iot/countersign"
)

// MaxAttributes is the most attributes in one request. Clients send one to four.
const MaxAttributes = 64

var (
	oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}      // RFC 2985, 5.4.1
	oidExtensionRequest  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}     // RFC 2985, 5.4.2
	oidMSExtensions      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14} // the same, of Windows
)

// Attribute is one attribute of a request (RFC 2986, 4.1).
type Attribute struct {
	Type   asn1.ObjectIdentifier
	Values [][]byte // each the encoding of one value, as it was sent; may be empty, against RFC 2986
}

// Value returns the one value of the attribute in DER. An attribute without a
// value, or with several, is an error.
func (a *Attribute) Value() ([]byte, error) {
	if len(a.Values) != 1 {
		return nil, countersign.Errorf(countersign.BadRequest, "the attribute %s of the certification request has %d values, not one",
			nameOf(attributeNames, a.Type.String()), len(a.Values)).WithNext("send it with one value")
	}
	e, _, err := readElement(a.Values[0])
	if err == nil {
		var der []byte
		if der, err = toDER(e); err == nil {
			return der, nil
		}
	}
	return nil, malformed("attribute "+nameOf(attributeNames, a.Type.String()), err)
}

// attributeNames are names of the attributes that are read here.
var attributeNames = map[string]string{
	oidChallengePassword.String(): "challengePassword",
	oidExtensionRequest.String():  "extensionRequest",
	oidMSExtensions.String():      "extensionRequest of Windows",
}

// Attribute returns the attribute of that type, nil if the request has none. An
// attribute that occurs twice is an error: two parsers could read it differently.
func (r *Request) Attribute(id asn1.ObjectIdentifier) (*Attribute, error) {
	var found *Attribute
	for i := range r.Attributes {
		switch {
		case !r.Attributes[i].Type.Equal(id):
		case found != nil:
			return nil, countersign.Errorf(countersign.BadRequest, "the certification request has the attribute %s twice", nameOf(attributeNames, id.String())).
				WithNext("remove one of them")
		default:
			found = &r.Attributes[i]
		}
	}
	return found, nil
}

// Challenge returns the challengePassword of the request (RFC 2985, 5.4.1), a
// secret. It is empty if there is none, or one that is not text and so equals no
// password. Two of them are an error. Its length is not limited here.
func (r *Request) Challenge() (string, error) {
	a, err := r.Attribute(oidChallengePassword)
	if a == nil || err != nil || len(a.Values) == 0 {
		return "", err
	}
	der, err := a.Value()
	if err != nil {
		return "", err
	}
	e, _, err := readElement(der)
	if err != nil {
		return "", malformed("challengePassword", err)
	}
	s, err := readString(e)
	if err != nil {
		return "", nil //nolint:nilerr // not text, as documented
	}
	return s, nil
}

func readAttributes(e element) ([]Attribute, error) {
	var attributes []Attribute
	for in := (list{e.body}); !in.empty(); {
		if len(attributes) == MaxAttributes {
			return nil, countersign.Errorf(countersign.BadRequest, "the certification request has more than %d attributes", MaxAttributes).
				WithNext("leave out what is not needed: a key and a name are enough")
		}
		a, err := readAttribute(&in)
		if err != nil {
			return nil, malformed(fmt.Sprintf("attribute %d", len(attributes)+1), err)
		}
		attributes = append(attributes, a)
	}
	return attributes, nil
}

// readAttribute reads one attribute. Its values are parsed where they are used: the
// content of an unused value is no reason to refuse the request.
func readAttribute(in *list) (a Attribute, err error) {
	seq, err := in.nextOf(tagSequence)
	if err != nil {
		return a, err
	}
	parts := list{seq.body}
	if a.Type, err = readOID(&parts); err != nil || parts.empty() {
		return a, err
	}
	set, err := parts.nextOf(tagSet)
	if err != nil {
		return a, err
	}
	for values := (list{set.body}); !values.empty(); {
		v, err := values.next()
		if err != nil {
			return a, err
		}
		a.Values = append(a.Values, v.raw)
	}
	return a, nil
}
