// Package pkcs10test holds certification requests as devices in the field send
// them, each with its right outcome, so that every door can be tried with all of
// them.
package pkcs10test

import (
	"embed"
	"fmt"
	"testing"

	"github.com/countersign-iot/countersign"
)

// Case is a request and what must become of it.
type Case struct {
	Name string
	Body []byte // as a device sends it: DER, PEM or base64

	Device string           // whom the certificate is for, if it is granted
	Code   countersign.Code // why it is refused, if it is
	Reason string           // what the reason must name
	// Later is set where the request can be read, and the authority refuses it for
	// its name or its key.
	Later bool
}

// Granted reports whether the request must be granted.
func (c *Case) Granted() bool { return c.Code == "" }

//go:embed testdata
var files embed.FS

// fromField are requests rebuilt from reports about other products.
var fromField = []Case{
	{Name: "attribute-without-values", Device: "attr-04rest"},
	{Name: "base64-crlf", Device: "box-043"},
	{Name: "base64-no-breaks", Device: "box-041"},
	{Name: "base64-no-padding", Device: "box-045"},
	{Name: "challenge-300", Device: "attr-11rest"},
	{Name: "cn-two", Code: countersign.BadRequest, Reason: `two common names, "pump-17" and "pump-18"`},
	{Name: "ec-compressed-point", Code: countersign.WeakKey, Reason: "EC public key is compressed"},
	{Name: "ec-explicit-params", Code: countersign.WeakKey, Reason: "the parameters of its curve"},
	{Name: "md5-rsa", Code: countersign.BadRequest, Reason: "MD5"},
	{Name: "no-attributes-field", Device: "attr-01rest"},
	{Name: "pem-all-in-one-line", Device: "box-029"},
	{Name: "pem-bom", Device: "box-019"},
	{Name: "pem-cert-first", Code: countersign.BadRequest, Reason: `"CERTIFICATE", not a CERTIFICATE REQUEST`},
	{Name: "pem-key-first", Device: "box-033"},
	{Name: "printable-at-in-email", Device: "pump-02"},
	{Name: "printable-slash-underscore-OU", Device: "pump-04"},
	{Name: "printable-underscore", Device: "pump_01"},
	{Name: "pss-sig-salt20", Device: "alg-13"},
	{Name: "rsa-spki-without-NULL", Device: "alg-01"},
	{Name: "san-dns-utf8", Device: "attr-19rest"},
	{Name: "sha1-ecdsa", Code: countersign.BadRequest, Reason: "SHA-1"},
	{Name: "sha1-rsa", Code: countersign.BadRequest, Reason: "SHA-1"},
	{Name: "utf8-O-broken", Device: "pump-10"},
}

// Cases returns all cases. Those that are not from a file are made with new keys;
// each is for a device of its own.
func Cases(t testing.TB) []Case {
	t.Helper()
	var all []Case
	for _, c := range fromField {
		body, err := files.ReadFile("testdata/" + c.Name + ".req")
		if err != nil {
			t.Fatal(err)
		}
		c.Body = body
		all = append(all, c)
	}
	m := &maker{t: t, rsa: rsaKey(t)}
	m.subjects()
	m.attributes()
	m.extensions()
	m.altNames()
	m.encodings()
	m.keys()
	m.signatures()
	m.texts()
	m.otherThings()
	return append(all, m.cases...)
}

// maker collects cases.
type maker struct {
	t     testing.TB
	rsa   signer
	cases []Case
}

// device is the id of the next case.
func (m *maker) device() string { return fmt.Sprintf("field-%03d", len(m.cases)) }

// good adds a request that must be granted.
func (m *maker) good(name string, body []byte) {
	m.cases = append(m.cases, Case{Name: name, Body: body, Device: m.device()})
}

// bad adds a request that must be refused for the reason.
func (m *maker) bad(name string, body []byte, code countersign.Code, reason string) {
	m.cases = append(m.cases, Case{Name: name, Body: body, Code: code, Reason: reason})
}

// later adds a request that can be read and must be refused by the authority.
func (m *maker) later(name string, body []byte, code countersign.Code, reason string) {
	m.cases = append(m.cases, Case{Name: name, Body: body, Code: code, Reason: reason, Later: true})
}

// malformed adds a request that must be refused as a bad request.
func (m *maker) malformed(name string, body []byte, reason string) {
	m.bad(name, body, countersign.BadRequest, reason)
}
