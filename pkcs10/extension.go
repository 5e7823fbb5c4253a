package pkcs10

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"

	"github.com/countersign-iot/countersign"
)

// MaxExtensions is the most extensions that one request may ask for. Requests ask
// for up to six.
const MaxExtensions = 64

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// readExtensions reads the extensions that the request asks for, and of them the
// alternative names. Other extensions, critical or not, are not parsed:
// the profile of the fleet determines the content of a certificate.
func (r *Request) readExtensions() error {
	a, err := r.Attribute(oidExtensionRequest)
	if err != nil {
		return err
	}
	if a == nil {
		if a, err = r.Attribute(oidMSExtensions); err != nil {
			return err
		}
	}
	if a == nil || len(a.Values) == 0 {
		return nil
	}
	der, err := a.Value()
	if err != nil {
		return err
	}
	names := false
	for in := (list{der}); !in.empty(); {
		seq, err := in.nextOf(tagSequence)
		if err != nil {
			return malformed("extensionRequest", err)
		}
		for in := (list{seq.body}); !in.empty(); {
			x, err := readExtension(&in)
			if err != nil {
				return malformed("extensionRequest", err)
			}
			if len(r.Extensions) == MaxExtensions {
				return countersign.Errorf(countersign.BadRequest, "the certification request asks for more than %d extensions", MaxExtensions).
					WithNext("send none: they are not needed")
			}
			r.Extensions = append(r.Extensions, x)
			if !x.Id.Equal(oidSubjectAltName) {
				continue
			}
			if names {
				return countersign.Errorf(countersign.BadRequest, "the certification request asks for subjectAltName twice").WithNext("remove one of them")
			}
			names = true
			if err := r.readNames(x.Value); err != nil {
				return malformed("subjectAltName", err)
			}
		}
	}
	return nil
}

// readExtension reads one Extension (RFC 5280, 4.1).
func readExtension(in *list) (x pkix.Extension, err error) {
	seq, err := in.nextOf(tagSequence)
	if err != nil {
		return x, err
	}
	parts := list{seq.body}
	if x.Id, err = readOID(&parts); err != nil {
		return x, err
	}
	value, err := parts.next()
	if err == nil && value.tag == tagBoolean {
		x.Critical = len(value.body) > 0 && value.body[0] != 0
		value, err = parts.nextOf(tagOctetString)
	}
	x.Value = value.body
	return x, err
}

// Tags of GeneralName (RFC 5280, 4.2.1.6).
const (
	tagBoolean = 0x01
	tagEmail   = 0x81
	tagDNS     = 0x82
	tagURI     = 0x86
	tagIP      = 0x87
)

// readNames reads GeneralNames. They are only for policies and never copied into a
// certificate, so a name is read as text, whatever its octets are.
func (r *Request) readNames(der []byte) error {
	seq, err := (&list{der}).nextOf(tagSequence)
	if err != nil {
		return err
	}
	for in := (list{seq.body}); !in.empty(); {
		e, err := in.next()
		if err != nil {
			return err
		}
		text := element{tag: tagIA5, raw: e.raw, body: e.body}
		switch e.tag {
		case tagEmail:
			r.EmailAddresses = append(r.EmailAddresses, showString(text))
		case tagDNS:
			r.DNSNames = append(r.DNSNames, showString(text))
		case tagURI:
			r.URIs = append(r.URIs, showString(text))
		case tagIP:
			r.IPAddresses = append(r.IPAddresses, net.IP(e.body))
		}
	}
	return nil
}
