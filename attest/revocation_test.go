package attest_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
)

var (
	oidIDP     = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidDelta   = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidCDP     = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidCertIss = asn1.ObjectIdentifier{2, 5, 29, 29}
)

const unknown = countersign.Unavailable

// listed makes a list for both CAs and returns mid's, to be changed.
func listed(w *world) *list {
	l := newList(w.mid, 10)
	w.lists, w.require = []*list{newList(w.root, 1), l}, true
	return l
}

func idp(contents ...[]byte) []byte { return tlv(0x30, contents...) }

func fullName(uri string) []byte { return tlv(0xa0, tlv(0xa0, tlv(0x86, []byte(uri)))) }

// delta adds a list of what changed since number base.
func delta(w *world, base, number byte) *list {
	d := newList(w.mid, int64(number)).extend(oidDelta, []byte{2, 1, base})
	w.lists = append(w.lists, d)
	return d
}

// indirect puts the device's status on a list of another CA under the root.
func indirect(w *world) *list {
	other := newCA(w.t, "Pump Works Lists", w.root, 4)
	w.known = []*spec{other}
	dn := marshal(w.t, name("Pump Works Lists").ToRDNSequence())
	w.leaf.extend(oidCDP, false, tlv(0x30, tlv(0x30, tlv(0xa2, tlv(0xa4, dn)))))
	l := newList(other, 3).extend(oidIDP, idp([]byte{0x84, 1, 0xff}))
	w.lists, w.require = []*list{newList(w.root, 1), l}, true
	return l
}

func (l *list) lastEntryOf(w *world, cn string) {
	dn := marshal(w.t, name(cn).ToRDNSequence())
	e := &l.template.RevokedCertificateEntries[len(l.template.RevokedCertificateEntries)-1]
	e.ExtraExtensions = []pkix.Extension{{Id: oidCertIss, Critical: true, Value: tlv(0x30, tlv(0xa4, dn))}}
}

func listCases() []pathCase {
	return slices.Concat(simpleListCases(), scopeCases(), deltaCases(), indirectCases())
}

func simpleListCases() []pathCase {
	return []pathCase{
		{"lists for all", "6.3", func(w *world) { listed(w) }, valid, ""},
		{"no list, required", "6.3", func(w *world) { w.require = true }, unknown, ""},
		{"no list of the intermediate's, required", "6.3", func(w *world) { w.lists, w.require = []*list{newList(w.root, 1)}, true }, unknown, ""},
		{"no list of the anchor's, required", "6.3", func(w *world) { w.lists, w.require = []*list{newList(w.mid, 1)}, true }, unknown, ""},
		{"device revoked", "6.3.3 (i)", func(w *world) { listed(w).revoke(77, 1) }, countersign.CertIsRevoked, ""},
		{"device revoked, lists optional", "6.3.3 (i)", func(w *world) { listed(w).revoke(77, 1); w.require = false }, countersign.CertIsRevoked, ""},
		{"device on hold", "5.3.1", func(w *world) { listed(w).revoke(77, 6) }, countersign.CertIsHeld, ""},
		{"another revoked", "6.3.3 (i)", func(w *world) { listed(w).revoke(76, 1).revoke(78, 1) }, valid, ""},
		{"intermediate revoked", "6.3.3 (i)", func(w *world) { listed(w); w.lists[0].revoke(2, 2) }, countersign.CertIsRevoked, ""},
		{"same serial revoked by another CA", "6.3.3 (b)", func(w *world) { listed(w); w.lists[0].revoke(77, 1) }, valid, ""},
		{"list out of date", "6.3.3 (a)", func(w *world) { listed(w).template.NextUpdate = today.Add(-1) }, unknown, ""},
		{"list out of date, lists optional", "6.3.3 (a)", func(w *world) {
			listed(w).template.NextUpdate = today.Add(-1)
			w.require = false
		}, unknown, ""},
		{"revoked on a list out of date", "6.3.3 (i)", func(w *world) {
			listed(w).revoke(77, 1).template.NextUpdate = today.Add(-1)
		}, countersign.CertIsRevoked, ""},
		{"list of tomorrow", "6.3.3 (a)", func(w *world) {
			l := listed(w)
			l.template.ThisUpdate, l.template.NextUpdate = today.Add(3600e9), today.AddDate(0, 0, 2)
		}, unknown, ""},
		{"newer list beside an old one", "6.3.3 (a)", func(w *world) {
			listed(w).template.NextUpdate = today.Add(-1)
			w.lists = append(w.lists, newList(w.mid, 11))
		}, valid, ""},
		{"list with another's signature", "6.3.3 (g)", func(w *world) { listed(w).key = newKey(w.t) }, unknown, ""},
		{"list of a CA without cRLSign", "6.3.3 (f)", func(w *world) {
			w.mid.template.KeyUsage = x509.KeyUsageCertSign
			listed(w)
		}, unknown, ""},
		{"unknown critical extension of the list", "5.2", func(w *world) { listed(w).extend(oidUnknown, []byte{5, 0}) }, countersign.BadRequest, ""},
		{"unknown critical extension of an entry", "5.3", func(w *world) {
			l := listed(w).revoke(76, 1)
			l.template.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: oidUnknown, Critical: true, Value: []byte{5, 0}}}
		}, countersign.BadRequest, ""},
		{"list by the CA's second key", "6.3.3 (f)", func(w *world) {
			signer := newCA(w.t, "Pump Works Factory 3", w.root, 6)
			signer.template.IsCA, signer.template.KeyUsage = false, x509.KeyUsageCRLSign
			signer.template.SubjectKeyId = []byte("lists")
			w.known = []*spec{signer}
			listed(w).by = signer
		}, valid, ""},
		{"device revoked by the CA's second key", "6.3.3 (f)", func(w *world) {
			signer := newCA(w.t, "Pump Works Factory 3", w.root, 6)
			w.known = []*spec{signer}
			listed(w).revoke(77, 1).by = signer
		}, countersign.CertIsRevoked, ""},
		{"list by a second key that is revoked", "6.3.3 (f)", func(w *world) {
			signer := newCA(w.t, "Pump Works Factory 3", w.root, 6)
			w.known = []*spec{signer}
			listed(w).by = signer
			w.lists[0].revoke(6, 1)
		}, unknown, ""},
		{"list by a CA of that name elsewhere", "6.3.3 (f)", func(w *world) {
			signer := newCA(w.t, "Pump Works Factory 3", newCA(w.t, "Other", nil, 1), 6)
			w.known = []*spec{signer}
			listed(w).by = signer
		}, unknown, ""},
	}
}

func scopeCases() []pathCase {
	const here, there = "http://crl.example.com/here", "http://crl.example.com/there"
	return []pathCase{
		{"list for users", "6.3.3 (b)(2)(ii)", func(w *world) { listed(w).extend(oidIDP, idp([]byte{0x81, 1, 0xff})) }, valid, ""},
		{"list for CAs", "6.3.3 (b)(2)(iii)", func(w *world) { listed(w).extend(oidIDP, idp([]byte{0x82, 1, 0xff})) }, unknown, ""},
		{"list for attribute certificates", "6.3.3 (b)(2)(iv)", func(w *world) { listed(w).extend(oidIDP, idp([]byte{0x85, 1, 0xff})) }, unknown, ""},
		{"list of the device's distribution point", "6.3.3 (b)(2)(i)", func(w *world) {
			w.leaf.template.CRLDistributionPoints = []string{there, here}
			listed(w).extend(oidIDP, idp(fullName(here)))
		}, valid, ""},
		{"list of a point relative to its issuer", "6.3.3 (b)(2)(i)", func(w *world) {
			dn := append(name("Pump Works Factory 3").ToRDNSequence(), pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "here"}})
			w.leaf.extend(oidCDP, false, tlv(0x30, tlv(0x30, tlv(0xa0, tlv(0xa0, tlv(0xa4, marshal(w.t, dn)))))))
			pair := tlv(0x30, []byte{6, 3, 0x55, 4, 3}, tlv(0x0c, []byte("here")))
			listed(w).extend(oidIDP, idp(tlv(0xa0, tlv(0xa1, pair))))
		}, valid, ""},
		{"list of another distribution point", "6.3.3 (b)(2)(i)", func(w *world) {
			w.leaf.template.CRLDistributionPoints = []string{there}
			listed(w).extend(oidIDP, idp(fullName(here)))
		}, unknown, ""},
		{"distribution point without the device naming any", "6.3.3 (b)(2)(i)", func(w *world) {
			listed(w).extend(oidIDP, idp(fullName(here)))
		}, unknown, ""},
		{"some reasons", "6.3.3 (d)", func(w *world) { listed(w).extend(oidIDP, idp([]byte{0x83, 2, 6, 0x40})) }, unknown, ""},
		{"all reasons on two lists", "6.3.3 (d)", func(w *world) {
			listed(w).extend(oidIDP, idp([]byte{0x83, 2, 6, 0x40}))
			w.lists = append(w.lists, newList(w.mid, 11).extend(oidIDP, idp([]byte{0x83, 3, 7, 0x3f, 0x80})))
		}, valid, ""},
		{"revoked on the second of two lists", "6.3.3 (d)", func(w *world) {
			listed(w).extend(oidIDP, idp([]byte{0x83, 2, 6, 0x40})).revoke(77, 1)
			w.lists = append(w.lists, newList(w.mid, 11).extend(oidIDP, idp([]byte{0x83, 3, 7, 0x3f, 0x80})))
		}, countersign.CertIsRevoked, ""},
		{"malformed scope", "5.2.5", func(w *world) { listed(w).extend(oidIDP, []byte{0x30, 2, 0x99, 0}) }, countersign.BadRequest, "reads over it"},
	}
}

func deltaCases() []pathCase {
	return []pathCase{
		{"revoked since", "5.2.4", func(w *world) { listed(w); delta(w, 10, 11).revoke(77, 1) }, countersign.CertIsRevoked, "takes a delta only where freshestCRL points to one"},
		{"released since", "5.2.4", func(w *world) { listed(w).revoke(77, 6); delta(w, 10, 11).revoke(77, 8) }, valid, "takes a delta only where freshestCRL points to one"},
		{"delta to a later list", "5.2.4 (c)", func(w *world) { listed(w).revoke(77, 6); delta(w, 11, 12).revoke(77, 8) }, countersign.CertIsHeld, ""},
		{"delta older than the list", "5.2.4 (d)", func(w *world) { listed(w).revoke(77, 6); delta(w, 8, 9).revoke(77, 8) }, countersign.CertIsHeld, ""},
		{"delta with another's signature", "5.2.4", func(w *world) {
			listed(w).revoke(77, 6)
			delta(w, 10, 11).revoke(77, 8).key = newKey(w.t)
		}, countersign.CertIsHeld, ""},
		{"delta alone", "5.2.4", func(w *world) { listed(w); w.lists = w.lists[:1]; delta(w, 10, 11) }, unknown, ""},
	}
}

func indirectCases() []pathCase {
	return []pathCase{
		{"indirect list", "6.3.3 (b)(1)", func(w *world) { indirect(w) }, valid, ""},
		{"revoked on an indirect list", "5.3.3", func(w *world) {
			indirect(w).revoke(77, 1).lastEntryOf(w, "Pump Works Factory 3")
		}, countersign.CertIsRevoked, ""},
		{"issuer of the entry before applies", "5.3.3", func(w *world) {
			l := indirect(w).revoke(900, 1)
			l.lastEntryOf(w, "Pump Works Factory 3")
			l.revoke(77, 1)
		}, countersign.CertIsRevoked, ""},
		{"same serial of another issuer on it", "5.3.3", func(w *world) { indirect(w).revoke(77, 1) }, valid, ""},
		{"list of a stranger that is not indirect", "6.3.3 (b)(1)", func(w *world) { indirect(w).template.ExtraExtensions = nil }, unknown, ""},
		{"indirect list that the device does not name", "6.3.3 (b)(1)", func(w *world) {
			indirect(w)
			w.leaf.template.ExtraExtensions = nil
		}, unknown, ""},
		{"entries of others on a list that is not indirect", "5.3.3", func(w *world) {
			l := listed(w).revoke(77, 1)
			l.lastEntryOf(w, "Pump Works Factory 3")
		}, countersign.BadRequest, ""},
		{"large number", "5.2.3", func(w *world) { listed(w).template.Number = new(big.Int).Lsh(big.NewInt(1), 158) }, valid, ""},
	}
}

func TestParseCRLRefusesWhatIsNone(t *testing.T) {
	good := newList(newWorld(t).mid, 5).revoke(1, 1).sign(t)
	l, err := attest.ParseCRL(good)
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != 1 || l.Number().Int64() != 5 || !l.ThisUpdate().Before(today) || !l.NextUpdate().After(today) {
		t.Errorf("ParseCRL: got %d entries, number %v, %v to %v", l.Len(), l.Number(), l.ThisUpdate(), l.NextUpdate())
	}
	for name, tt := range map[string]struct {
		der  []byte
		want countersign.Code
	}{
		"nothing":       {nil, countersign.BadRequest},
		"cut":           {good[:len(good)-1], countersign.BadRequest},
		"with a tail":   {append(slices.Clone(good), 0), countersign.BadRequest},
		"a certificate": {newWorld(t).root.sign(t).Raw, countersign.BadRequest},
		"too large":     {make([]byte, attest.MaxCRL+1), countersign.TooLarge},
	} {
		if _, err := attest.ParseCRL(tt.der); countersign.CodeOf(err) != tt.want {
			t.Errorf("%s: got %v, want %s", name, err, tt.want)
		}
	}
}
