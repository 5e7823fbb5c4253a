package attest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
)

// pathCase bends the world in one place. Section is of RFC 5280.
type pathCase struct {
	name, section string
	bend          func(*world)
	want          countersign.Code // empty: valid
	openssl       string           // why OpenSSL decides differently; empty: it agrees
}

const (
	valid   = countersign.Code("")
	badPath = countersign.Misconfigured
)

var (
	oidSAN      = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidNC       = asn1.ObjectIdentifier{2, 5, 29, 30}
	oidPC       = asn1.ObjectIdentifier{2, 5, 29, 36}
	oidUnknown  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 55555, 1}
	permitted   = byte(0xa0)
	excluded    = byte(0xa1)
	anyUsage    = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	serverUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
)

// subtree is nameConstraints with one name.
func subtree(kind, tag byte, value []byte) []byte {
	return tlv(0x30, tlv(kind, tlv(0x30, tlv(tag, value))))
}

func constrain(w *world, kind, tag byte, value string) {
	w.mid.extend(oidNC, true, subtree(kind, tag, []byte(value)))
}

func constrainDN(w *world, kind byte, n pkix.Name) {
	w.mid.extend(oidNC, true, subtree(kind, 0xa4, marshal(w.t, n.ToRDNSequence())))
}

func uri(w *world, s string) {
	u, err := url.Parse(s)
	if err != nil {
		w.t.Fatal(err)
	}
	w.leaf.template.URIs = append(w.leaf.template.URIs, u)
}

// between puts n more CAs between root and mid.
func between(w *world, n int) {
	by := w.root
	for i := range n {
		ca := newCA(w.t, "Pump Works Layer "+string(rune('A'+i)), by, int64(100+i))
		w.extra, by = append(w.extra, ca), ca
	}
	w.mid.by = by
}

// rollover puts a self-issued certificate of the mid CA's new key under its old one.
func rollover(w *world) *spec {
	next := newCA(w.t, "", w.mid, 5)
	next.template.Subject = w.mid.template.Subject
	w.mid.template.SubjectKeyId = []byte("old")
	next.extend(asn1.ObjectIdentifier{2, 5, 29, 35}, false, tlv(0x30, tlv(0x80, []byte("old")))) // crypto/x509 leaves it out
	w.leaf.by = next
	w.extra = []*spec{next, w.mid}
	return next
}

func basicCases() []pathCase {
	return []pathCase{
		{"as made", "6.1", func(*world) {}, valid, ""},
		{"issued by the anchor", "6.1", func(w *world) { w.leaf.by = w.root }, valid, ""},
		{"unordered, twice, unrelated, with anchor", "6.1", func(w *world) {
			other := newCA(w.t, "Other", nil, 9)
			w.extra = []*spec{w.root, other}
			w.reorder = func(c []*x509.Certificate) []*x509.Certificate {
				return []*x509.Certificate{c[0], c[3], c[2], c[1], c[0], c[1]}
			}
		}, valid, ""},
		{"intermediate known to the anchor", "6.1", func(w *world) {
			w.known = []*spec{w.mid}
			w.reorder = func(c []*x509.Certificate) []*x509.Certificate { return c[:1] }
		}, valid, ""},
		{"intermediate missing", "6.1", func(w *world) {
			w.reorder = func(c []*x509.Certificate) []*x509.Certificate { return c[:1] }
		}, countersign.CertUnknown, ""},
		{"other root of the same name", "6.1.3", func(w *world) {
			other := newCA(w.t, "Pump Works Root", nil, 1)
			other.template.SubjectKeyId = []byte("one")
			w.root.template.SubjectKeyId = []byte("one")
			w.mid.by = other
		}, badPath, ""},
		{"signature of the device broken", "6.1.3 (a)(1)", func(w *world) { w.leaf.forged = true }, badPath, ""},
		{"signature of the intermediate broken", "6.1.3 (a)(1)", func(w *world) { w.mid.forged = true }, badPath, ""},
		{"signature of the anchor over itself broken", "6.1.1 (d)", func(w *world) { w.root.forged = true }, valid, ""},
		{"self-signed device", "6.1", func(w *world) { w.leaf.by = nil }, badPath, ""},
		{"device is the anchor's own CA", "6.1", func(w *world) {
			w.reorder = func(c []*x509.Certificate) []*x509.Certificate { return c[1:] }
		}, badPath, ""},
		{"expired", "6.1.3 (a)(2)", func(w *world) { w.leaf.template.NotAfter = today.Add(-time.Second) }, countersign.CertExpired, ""},
		{"expires this second", "4.1.2.5", func(w *world) { w.leaf.template.NotAfter = today }, valid, "ends a second earlier"},
		{"begins this second", "4.1.2.5", func(w *world) { w.leaf.template.NotBefore = today }, valid, ""},
		{"begins as far ahead as clocks may differ", "4.1.2.5", func(w *world) { w.leaf.template.NotBefore = today.Add(countersign.ClockSkew) }, valid, "begins later"},
		{"not yet valid", "6.1.3 (a)(2)", func(w *world) { w.leaf.template.NotBefore = today.Add(countersign.ClockSkew + time.Second) }, countersign.CertNotYetValid, ""},
		{"no end", "4.1.2.5", func(w *world) { w.leaf.template.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }, valid, ""},
		{"intermediate expired", "6.1.3 (a)(2)", func(w *world) { w.mid.template.NotAfter = today.Add(-time.Second) }, countersign.CertExpired, ""},
		{"anchor expired", "6.1.1 (d)", func(w *world) { w.root.template.NotAfter = today.Add(-time.Second) }, countersign.CertExpired, ""},
		{"issuer in other case and spacing", "7.1", func(w *world) {
			w.mid.tamper = func(c *tbsCertificate) {
				c.Issuer.FullBytes = marshal(w.t, pkix.Name{Organization: []string{"  PUMP  works"}, CommonName: "pump works root "}.ToRDNSequence())
			}
		}, valid, ""},
		{"issuer in another kind of string", "7.1", func(w *world) {
			w.mid.tamper = func(c *tbsCertificate) {
				c.Issuer.FullBytes = slices.Clone(c.Issuer.FullBytes)
				for i, b := range c.Issuer.FullBytes {
					if b == asn1.TagPrintableString && i > 3 && c.Issuer.FullBytes[i-3] == 0x55 {
						c.Issuer.FullBytes[i] = asn1.TagUTF8String
					}
				}
			}
		}, valid, ""},
		{"issuer in BMPString", "7.1", func(w *world) {
			w.root.template.Subject, w.mid.template.SubjectKeyId = pkix.Name{CommonName: "Root"}, []byte("mid")
			w.mid.tamper = func(c *tbsCertificate) {
				cn := tlv(0x1e, []byte("\x00r\x00O\x00o\x00t"))
				c.Issuer.FullBytes = tlv(0x30, tlv(0x31, tlv(0x30, []byte{6, 3, 0x55, 4, 3}, cn)))
			}
		}, valid, ""},
		{"better of two intermediates", "6.1", func(w *world) {
			old := *w.mid
			old.template.NotAfter, old.template.SerialNumber = today.Add(-time.Hour), big.NewInt(3)
			w.extra = []*spec{&old}
			w.reorder = func(c []*x509.Certificate) []*x509.Certificate { return []*x509.Certificate{c[0], c[2], c[1]} }
		}, valid, ""},
		{"ten certificates", "6.1", func(w *world) { between(w, 8) }, valid, ""},
		{"eleven certificates", "6.1", func(w *world) { between(w, 9) }, countersign.TooLarge, "bounds depth at 100"},
		{"large certificates", "6.1", func(w *world) { w.leaf.extend(oidUnknown, false, make([]byte, 70_000)) }, countersign.TooLarge, "has no bound here"},
	}
}

func formCases() []pathCase {
	ec224 := func(w *world) *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
		if err != nil {
			w.t.Fatal(err)
		}
		return key
	}
	critical := func(e *pkix.Extension) { e.Critical = !e.Critical }
	noUse := func(e *pkix.Extension) { e.Value = []byte{3, 1, 0} }
	return []pathCase{
		{"intermediate of version 1", "6.1.4 (k)", func(w *world) {
			w.mid.tamper = func(c *tbsCertificate) { c.Version, c.Extensions = 0, nil }
		}, badPath, ""},
		{"device of version 1", "4.1.2.1", func(w *world) {
			w.leaf.tamper = func(c *tbsCertificate) { c.Version, c.Extensions = 0, nil }
		}, badPath, "takes it"},
		{"serial zero", "4.1.2.2", func(w *world) {
			w.leaf.tamper = func(c *tbsCertificate) { c.Serial = new(big.Int) }
		}, badPath, "does not look at serials"},
		{"serial of 21 octets", "4.1.2.2", func(w *world) {
			w.leaf.tamper = func(c *tbsCertificate) { c.Serial = new(big.Int).Lsh(big.NewInt(1), 165) }
		}, badPath, "does not look at serials"},
		{"no subject, no names", "4.1.2.6", func(w *world) { w.leaf.template.Subject = pkix.Name{} }, badPath, ""},
		{"no subject, critical names", "4.1.2.6", func(w *world) {
			w.leaf.template.Subject, w.leaf.template.DNSNames = pkix.Name{}, []string{"pump-7.example.com"}
		}, valid, ""},
		{"no subject, names not critical", "4.2.1.6", func(w *world) {
			w.leaf.template.Subject, w.leaf.template.DNSNames = pkix.Name{}, []string{"pump-7.example.com"}
			w.leaf.tamper = edit(critical, oidSAN...)
		}, badPath, ""},
		{"RSA of 1024 bits", "4.1.2.7", func(w *world) {
			key, err := rsa.GenerateKey(rand.Reader, 1024)
			if err != nil {
				w.t.Fatal(err)
			}
			w.leaf.key = key
		}, countersign.WeakKey, "security level 1 takes it"},
		{"P-224 in the intermediate", "4.1.2.7", func(w *world) { w.mid.key = ec224(w) }, countersign.WeakKey, "security level 1 takes it"},
		{"SHA-1", "4.1.1.2", func(w *world) {
			w.leaf.tamper = func(c *tbsCertificate) { c.Algorithm.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1} }
		}, badPath, ""},
		{"unknown critical extension of the device", "4.2", func(w *world) { w.leaf.extend(oidUnknown, true, []byte{5, 0}) }, badPath, ""},
		{"unknown critical extension of the intermediate", "4.2", func(w *world) { w.mid.extend(oidUnknown, true, []byte{5, 0}) }, badPath, ""},
		{"unknown critical extension of the anchor", "4.2", func(w *world) { w.root.extend(oidUnknown, true, []byte{5, 0}) }, badPath, ""},
		{"allowed critical extension", "4.2", func(w *world) {
			w.leaf.extend(oidUnknown, true, []byte{5, 0})
			w.allow = []asn1.ObjectIdentifier{oidUnknown}
		}, valid, "has no such list"},
		{"unknown extension, not critical", "4.2", func(w *world) { w.leaf.extend(oidUnknown, false, []byte{5, 0}) }, valid, ""},
		{"critical names of a form that crypto/x509 leaves out", "4.2.1.6", func(w *world) {
			w.leaf.extend(oidSAN, true, tlv(0x30, tlv(0xa4, marshal(w.t, name("chip-7").ToRDNSequence()))))
		}, valid, ""},
		{"device without authorityKeyIdentifier", "4.2.1.1", func(w *world) { w.leaf.tamper = drop(2, 5, 29, 35) }, badPath, ""},
		{"the same, legacy allowed", "4.2.1.1", func(w *world) {
			w.leaf.tamper, w.o.AllowLegacy = drop(2, 5, 29, 35), true
		}, valid, "x509_strict refuses"},
		{"intermediate without subjectKeyIdentifier", "4.2.1.2", func(w *world) { w.mid.tamper = drop(2, 5, 29, 14) }, badPath, ""},
		{"authorityKeyIdentifier of another key", "4.2.1.1", func(w *world) {
			w.leaf.tamper = edit(func(e *pkix.Extension) { e.Value = tlv(0x30, tlv(0x80, []byte("another"))) }, 2, 5, 29, 35)
		}, countersign.CertUnknown, ""},
		{"device is a CA", "4.2.1.9", func(w *world) { w.leaf.template.IsCA = true }, badPath, "a CA may be checked as a client"},
		{"device with keyCertSign", "4.2.1.3", func(w *world) { w.leaf.template.KeyUsage |= x509.KeyUsageCertSign }, badPath, ""},
		{"device with cRLSign", "4.2.1.3", func(w *world) { w.leaf.template.KeyUsage |= x509.KeyUsageCRLSign }, badPath, "does not mind"},
		{"device without digitalSignature", "4.2.1.3", func(w *world) { w.leaf.template.KeyUsage = x509.KeyUsageKeyEncipherment }, badPath, ""},
		{"device without keyUsage", "4.2.1.3", func(w *world) { w.leaf.template.KeyUsage = 0 }, valid, ""},
		{"intermediate is no CA", "6.1.4 (k)", func(w *world) {
			w.mid.template.IsCA, w.mid.template.KeyUsage = false, x509.KeyUsageDigitalSignature
			w.mid.template.SubjectKeyId = []byte("mid")
		}, badPath, ""},
		{"intermediate without basicConstraints", "6.1.4 (k)", func(w *world) { w.mid.tamper = drop(2, 5, 29, 19) }, badPath, ""},
		{"anchor without basicConstraints", "4.2.1.9", func(w *world) { w.root.tamper = drop(2, 5, 29, 19) }, badPath, ""},
		{"anchor's basicConstraints not critical", "4.2.1.9", func(w *world) { w.root.tamper = edit(critical, 2, 5, 29, 19) }, badPath, ""},
		{"intermediate without keyCertSign", "6.1.4 (n)", func(w *world) { w.mid.template.KeyUsage = x509.KeyUsageCRLSign }, badPath, ""},
		{"device's keyUsage without any use", "4.2.1.3", func(w *world) { w.leaf.tamper = edit(noUse, 2, 5, 29, 15) }, badPath, ""},
		{"intermediate's keyUsage without any use", "6.1.4 (n)", func(w *world) { w.mid.tamper = edit(noUse, 2, 5, 29, 15) }, badPath, ""},
		{"anchor's keyUsage without any use", "6.1.4 (n)", func(w *world) { w.root.tamper = edit(noUse, 2, 5, 29, 15) }, badPath, ""},
		{"anchor's serial zero", "4.1.2.2", func(w *world) {
			w.root.tamper = func(c *tbsCertificate) { c.Serial = new(big.Int) }
		}, badPath, "does not look at serials"},
		{"the same, legacy allowed", "4.1.2.2", func(w *world) {
			w.root.tamper, w.o.AllowLegacy = func(c *tbsCertificate) { c.Serial = new(big.Int) }, true
		}, valid, ""},
		{"path length kept", "6.1.4 (l)", func(w *world) { w.root.template.MaxPathLen = 1 }, valid, ""},
		{"path length exceeded", "6.1.4 (m)", func(w *world) { w.root.template.MaxPathLenZero = true }, badPath, ""},
		{"path length of a lower CA exceeded", "6.1.4 (m)", func(w *world) {
			between(w, 2)
			w.extra[0].template.MaxPathLen = 1
		}, badPath, ""},
		{"self-issued certificates are not counted", "6.1.4 (l)", func(w *world) {
			w.root.template.MaxPathLen = 1
			rollover(w)
		}, valid, ""},
	}
}

func usageCases() []pathCase {
	explicit := func(w *world) { w.mid.extend(oidPC, true, tlv(0x30, tlv(0x80, []byte{0}))) }
	policy := func(t testing.TB, s string) x509.OID {
		oid, err := x509.ParseOID(s)
		if err != nil {
			t.Fatal(err)
		}
		return oid
	}
	all := func(w *world, oid string) {
		w.mid.template.Policies = []x509.OID{policy(w.t, oid)}
		w.leaf.template.Policies = []x509.OID{policy(w.t, oid)}
	}
	return []pathCase{
		{"any extended key usage", "4.2.1.12", func(w *world) { w.leaf.template.ExtKeyUsage = anyUsage }, valid, "wants clientAuth by name"},
		{"serverAuth alone", "4.2.1.12", func(w *world) { w.leaf.template.ExtKeyUsage = serverUsage }, badPath, ""},
		{"no extended key usage", "4.2.1.12", func(w *world) { w.leaf.template.ExtKeyUsage = nil }, badPath, "takes it"},
		{"no extended key usage, allowed", "4.2.1.12", func(w *world) { w.leaf.template.ExtKeyUsage, w.o.AllowNoEKU = nil, true }, valid, ""},
		{"empty extended key usage", "4.2.1.12", func(w *world) {
			w.leaf.tamper = edit(func(e *pkix.Extension) { e.Value = []byte{0x30, 0} }, 2, 5, 29, 37)
		}, badPath, ""},
		{"intermediate for servers alone", "4.2.1.12", func(w *world) { w.mid.template.ExtKeyUsage = serverUsage }, badPath, ""},
		{"anchor for servers alone", "4.2.1.12", func(w *world) { w.root.template.ExtKeyUsage = serverUsage }, badPath, ""},
		{"explicit policy required and missing", "6.1.5 (g)", explicit, badPath, ""},
		{"explicit policy required and there", "6.1.5 (g)", func(w *world) { explicit(w); all(w, "1.2.3.4") }, valid, ""},
		{"caller's policy there", "6.1.1 (c)", func(w *world) {
			all(w, "1.2.3.4")
			w.o.Policies = []x509.OID{policy(w.t, "1.2.3.4")}
		}, valid, ""},
		{"caller's policy missing", "6.1.1 (c)", func(w *world) {
			all(w, "1.2.3.4")
			w.o.Policies = []x509.OID{policy(w.t, "1.2.3.5")}
		}, badPath, ""},
		{"caller's policy missing, issued by the anchor", "6.1.1 (c)", func(w *world) {
			w.leaf.by, w.o.Policies = w.root, []x509.OID{policy(w.t, "1.2.3.5")}
		}, badPath, ""},
	}
}

func nameCases() []pathCase {
	return []pathCase{
		{"DNS name permitted", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x82, "pumps.example.com")
			w.leaf.template.DNSNames = []string{"a.pumps.example.com"}
		}, valid, ""},
		{"DNS name not permitted", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x82, "pumps.example.com")
			w.leaf.template.DNSNames = []string{"a.valves.example.com"}
		}, badPath, ""},
		{"DNS name excluded", "4.2.1.10", func(w *world) {
			constrain(w, excluded, 0x82, "example.com")
			w.leaf.template.DNSNames = []string{"a.EXAMPLE.com"}
		}, badPath, ""},
		{"DNS constraint with a leading period", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x82, ".example.com")
			w.leaf.template.DNSNames = []string{"a.example.com"}
		}, badPath, "takes it"},
		{"address not permitted", "4.2.1.10", func(w *world) {
			w.mid.extend(oidNC, true, subtree(permitted, 0x87, []byte{10, 0, 0, 0, 255, 0, 0, 0}))
			w.leaf.template.IPAddresses = []net.IP{{192, 0, 2, 1}}
		}, badPath, ""},
		{"directory name permitted", "4.2.1.10", func(w *world) {
			constrainDN(w, permitted, pkix.Name{Organization: []string{"PUMP  works"}})
		}, valid, ""},
		{"directory name not permitted", "4.2.1.10", func(w *world) {
			constrainDN(w, permitted, pkix.Name{Organization: []string{"Valve Works"}})
		}, badPath, ""},
		{"directory name excluded", "4.2.1.10", func(w *world) {
			constrainDN(w, excluded, pkix.Name{Organization: []string{"Pump Works"}})
		}, badPath, ""},
		{"directory name among the alternative names excluded", "4.2.1.10", func(w *world) {
			constrainDN(w, excluded, pkix.Name{Organization: []string{"Valve Works"}})
			other := pkix.Name{Organization: []string{"Valve Works"}, CommonName: "x"}
			w.leaf.extend(oidSAN, false, tlv(0x30, tlv(0xa4, marshal(w.t, other.ToRDNSequence()))))
		}, badPath, ""},
		{"mailbox of the subject not permitted", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x81, "example.com")
			w.leaf.template.Subject.ExtraNames = []pkix.AttributeTypeAndValue{
				{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: "pump@example.org"},
			}
		}, badPath, ""},
		{"mailbox permitted", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x81, "pump@Example.com")
			w.leaf.template.EmailAddresses = []string{"pump@example.com"}
		}, valid, ""},
		{"mailbox of another there", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x81, "pump@example.com")
			w.leaf.template.EmailAddresses = []string{"Pump@example.com"}
		}, badPath, ""},
		{"mailbox with two hosts", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x81, "example.com")
			w.leaf.template.EmailAddresses = []string{"pump@evil.example@example.com"}
		}, badPath, "takes the last"},
		{"mailbox with a quoted local part", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x81, "example.com")
			w.leaf.template.EmailAddresses = []string{`"pump@7"@example.com`}
		}, valid, ""},
		{"mailbox constraint with two hosts", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x81, "a@b@example.com")
			w.leaf.template.EmailAddresses = []string{"a@example.com"}
		}, badPath, ""},
		{"mailbox on a host below the constraint", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x81, "example.com")
			w.leaf.template.EmailAddresses = []string{"pump@a.example.com"}
		}, badPath, ""},
		{"URI on the host", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x86, "pumps.example.com")
			uri(w, "https://pumps.example.com/7")
		}, valid, ""},
		{"URI on a host below it", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x86, "example.com")
			uri(w, "https://pumps.example.com/7")
		}, badPath, ""},
		{"URI in the domain", "4.2.1.10", func(w *world) {
			constrain(w, permitted, 0x86, ".example.com")
			uri(w, "https://pumps.example.com/7")
		}, valid, ""},
		{"URN under constraints on URIs", "4.2.1.10", func(w *world) {
			constrain(w, excluded, 0x86, "example.com")
			uri(w, "urn:dev:ops:32473-pump-7")
		}, badPath, ""},
		{"URN under constraints on addresses", "4.2.1.10", func(w *world) {
			w.mid.extend(oidNC, true, subtree(permitted, 0x87, []byte{10, 0, 0, 0, 255, 0, 0, 0}))
			uri(w, "urn:dev:ops:32473-pump-7")
		}, valid, ""},
		{"constraint on otherName", "4.2.1.10", func(w *world) {
			w.mid.extend(oidNC, true, subtree(permitted, 0xa0, slices.Concat(marshal(w.t, oidUnknown), tlv(0xa0, []byte{5, 0}))))
		}, badPath, "minds only where such a name occurs"},
		{"constraint on registeredID", "4.2.1.10", func(w *world) { constrain(w, excluded, 0x88, "\x2a\x03") }, badPath, "minds only where such a name occurs"},
		{"constraint with a minimum", "4.2.1.10", func(w *world) {
			w.mid.extend(oidNC, true, tlv(0x30, tlv(permitted, tlv(0x30, tlv(0x82, []byte("example.com")), []byte{0x80, 1, 1}))))
		}, badPath, "minds only where such a name occurs"},
		{"constraints in the device's certificate", "4.2.1.10", func(w *world) {
			w.leaf.extend(oidNC, true, subtree(permitted, 0x82, []byte("example.com")))
		}, badPath, "takes them"},
		{"constraints that are not critical count", "4.2.1.10", func(w *world) {
			w.mid.extend(oidNC, false, subtree(permitted, 0x82, []byte("example.com")))
			w.leaf.template.DNSNames = []string{"a.example.org"}
		}, badPath, ""},
		{"constraints of the anchor", "6.1.1 (d)", func(w *world) {
			w.root.extend(oidNC, true, subtree(permitted, 0x82, []byte("example.com")))
			w.leaf.template.DNSNames = []string{"a.example.org"}
		}, badPath, ""},
		{"intermediate's own name not permitted", "6.1.3 (b)", func(w *world) {
			w.root.extend(oidNC, true, subtree(permitted, 0xa4, marshal(w.t, pkix.Name{Organization: []string{"Valve Works"}}.ToRDNSequence())))
			w.leaf.template.Subject = pkix.Name{Organization: []string{"Valve Works"}, CommonName: "7"}
		}, badPath, ""},
		{"self-issued certificates are exempt", "6.1.3 (b)", func(w *world) {
			next := rollover(w)
			constrainDN(w, permitted, pkix.Name{Organization: []string{"Valve Works"}})
			next.template.DNSNames = []string{"ca.example.com"}
			w.leaf.template.Subject = pkix.Name{Organization: []string{"Valve Works"}, CommonName: "7"}
		}, valid, ""},
	}
}

func allCases() []pathCase {
	return slices.Concat(basicCases(), formCases(), usageCases(), nameCases(), listCases())
}

func TestValidatePath(t *testing.T) {
	for _, c := range allCases() {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.bend(w)
			b, err := w.build()
			var path attest.Path
			if err == nil {
				path, err = attest.ValidatePath(b.chain, []attest.Anchor{b.anchor}, w.o)
			}
			if got := countersign.CodeOf(err); got != c.want {
				t.Fatalf("ValidatePath, RFC 5280, %s: got %q (%v), want %q", c.section, got, err, c.want)
			}
			if err == nil && (!path.Certificates[0].Equal(b.chain[0]) || !path.Certificates[len(path.Certificates)-1].Equal(b.anchor.Certificate)) {
				t.Errorf("ValidatePath: the path does not lead from the device to the anchor")
			}
		})
	}
}

func TestValidatePathTriesEachAnchor(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	b, err := w.build()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.build()
	if err != nil {
		t.Fatal(err)
	}
	path, err := attest.ValidatePath(b.chain, []attest.Anchor{foreign.anchor, b.anchor}, w.o)
	if err != nil || path.Anchor != 1 || len(path.Certificates) != 3 || path.Revocation {
		t.Errorf("second anchor: got anchor %d, %d certificates, revocation %v, %v; want 1, 3, false, nil",
			path.Anchor, len(path.Certificates), path.Revocation, err)
	}
	for name, anchors := range map[string][]attest.Anchor{"no anchor": nil, "a foreign one of that name": {foreign.anchor}} {
		if _, err := attest.ValidatePath(b.chain, anchors, w.o); countersign.CodeOf(err) != countersign.CertUnknown {
			t.Errorf("%s: got %v, want certificate_unknown", name, err)
		}
	}
	for name, chain := range map[string][]*x509.Certificate{"no chain": nil, "a nil in it": {nil}} {
		if _, err := attest.ValidatePath(chain, []attest.Anchor{b.anchor}, w.o); countersign.CodeOf(err) != countersign.Unauthenticated {
			t.Errorf("%s: got %v, want unauthenticated", name, err)
		}
	}
}

func TestPathSaysThatRevocationWasChecked(t *testing.T) {
	w := newWorld(t)
	listed(w)
	b, err := w.build()
	if err != nil {
		t.Fatal(err)
	}
	if path, err := attest.ValidatePath(b.chain, []attest.Anchor{b.anchor}, w.o); err != nil || !path.Revocation {
		t.Errorf("lists for all: got revocation %v, %v, want true, nil", path.Revocation, err)
	}
}

// TestValidatePathBoundsTheSearch has CAs that all issued for each other, twice over.
func TestValidatePathBoundsTheSearch(t *testing.T) {
	w := newWorld(t)
	cas := make([]*spec, 4)
	for i := range cas {
		cas[i] = newCA(t, "Mesh "+string(rune('A'+i)), nil, int64(i+1))
	}
	for i, by := range cas {
		for j, of := range cas {
			if i == j {
				continue
			}
			cross := newCA(t, "", by, int64(20+10*i+j))
			cross.template.Subject, cross.key = of.template.Subject, of.key
			w.known = append(w.known, cross)
		}
	}
	w.leaf.by = cas[0]
	b, err := w.build()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = attest.ValidatePath(b.chain, []attest.Anchor{b.anchor}, w.o)
	if countersign.CodeOf(err) != countersign.CertUnknown || time.Since(began) > time.Second {
		t.Errorf("mesh of CAs: got %v after %v, want certificate_unknown at once", err, time.Since(began))
	}
}

func BenchmarkValidatePath(b *testing.B) {
	w := newWorld(b)
	listed(w)
	made, err := w.build()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := attest.ValidatePath(made.chain, []attest.Anchor{made.anchor}, w.o); err != nil {
			b.Fatal(err)
		}
	}
}
