package attest_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
)

// TestWhatCanBeRegisteredWorks: a CA that may be registered has valid paths, and one
// whose devices would all be refused may not. It needs the same option for both.
func TestWhatCanBeRegisteredWorks(t *testing.T) {
	notCritical := func(e *pkix.Extension) { e.Critical = false }
	for name, tt := range map[string]struct {
		bend   func(w *world)
		strict countersign.Code
		legacy countersign.Code
	}{
		"sound":                    {func(*world) {}, "", ""},
		"serial zero":              {func(w *world) { w.root.tamper = func(c *tbsCertificate) { c.Serial = new(big.Int) } }, badPath, ""},
		"no subjectKeyIdentifier":  {func(w *world) { w.root.tamper = drop(2, 5, 29, 14) }, badPath, ""},
		"constraints not critical": {func(w *world) { w.root.tamper = edit(notCritical, 2, 5, 29, 19) }, badPath, ""},
		"no basicConstraints":      {func(w *world) { w.root.tamper = drop(2, 5, 29, 19) }, badPath, badPath},
		"no keyCertSign":           {func(w *world) { w.root.template.KeyUsage = x509.KeyUsageCRLSign }, badPath, badPath},
		"keyUsage without any use": {func(w *world) {
			w.root.tamper = edit(func(e *pkix.Extension) { e.Value = []byte{3, 1, 0} }, 2, 5, 29, 15)
		}, badPath, badPath},
		"unknown critical":           {func(w *world) { w.root.extend(oidUnknown, true, []byte{5, 0}) }, badPath, badPath},
		"for servers alone":          {func(w *world) { w.root.template.ExtKeyUsage = serverUsage }, badPath, badPath},
		"no subject":                 {func(w *world) { w.root.template.Subject = pkix.Name{} }, badPath, badPath},
		"expired":                    {func(w *world) { w.root.template.NotAfter = today.Add(-time.Minute) }, countersign.CertExpired, countersign.CertExpired},
		"malformed constraint":       {func(w *world) { constrain(w, permitted, 0x81, "a@b@c"); w.known = []*spec{w.mid} }, badPath, badPath},
		"RSA of 1024 bits":           {func(w *world) { w.root.key = rsaKey(w, 1024) }, countersign.WeakKey, countersign.WeakKey},
		"intermediate without an id": {func(w *world) { w.mid.tamper = drop(2, 5, 29, 14); w.known = []*spec{w.mid} }, badPath, ""},
		"intermediate is no CA": {func(w *world) {
			w.mid.template.IsCA, w.mid.template.KeyUsage, w.mid.template.SubjectKeyId = false, x509.KeyUsageDigitalSignature, []byte("mid")
		}, "", ""}, // the device sends it; nothing is wrong with the anchor
		"intermediate of another CA": {func(w *world) { w.known = []*spec{newCA(w.t, "Alien", newCA(w.t, "Alien Root", nil, 8), 9)} }, badPath, badPath},
	} {
		for _, legacy := range []bool{false, true} {
			w := newWorld(t)
			tt.bend(w)
			b, err := w.build()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			b.anchor.Legacy = legacy
			want := tt.strict
			if legacy {
				want = tt.legacy
			}
			err = attest.CheckAnchor(b.anchor, today)
			if got := countersign.CodeOf(err); got != want {
				t.Errorf("%s, legacy %v: got %v, want %q", name, legacy, err, want)
			}
			_, used := attest.ValidatePath(b.chain, []attest.Anchor{b.anchor}, w.o)
			refused := err != nil
			if name != "intermediate is no CA" && name != "intermediate of another CA" && refused != (used != nil) {
				t.Errorf("%s, legacy %v: registration: %v, its device: %v", name, legacy, err, used)
			}
		}
	}
}

func rsaKey(w *world, bits int) *rsa.PrivateKey {
	w.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		w.t.Fatal(err)
	}
	return key
}

// TestEKCertificateAsChipsStoreIt: with TCG's head, and with what fills the NV index
// up behind it.
func TestEKCertificateAsChipsStoreIt(t *testing.T) {
	chip := newKey(t)
	ek, err := attest.EKArea(chip.Public())
	if err != nil {
		t.Fatal(err)
	}
	m := newMaker(t)
	der := m.issue(t, chip.Public(), nil)
	fill := func(b []byte, with byte, n int) []byte {
		b = append([]byte{}, b...)
		for range n {
			b = append(b, with)
		}
		return b
	}
	head := func(size int, rest ...byte) []byte {
		return append([]byte{0x10, 0x01, 0x00, byte(size >> 8), byte(size)}, rest...)
	}
	full := append([]byte{0x10, 0x02}, der...)
	for name, tt := range map[string]struct {
		stored []byte
		code   countersign.Code
	}{
		"as it is":               {der, ""},
		"filled with ones":       {fill(der, 0xff, 1300), ""},
		"filled with zeros":      {fill(der, 0, 1300), ""},
		"with TCG's head":        {head(len(full), full...), ""},
		"head without full tag":  {head(len(der), der...), ""},
		"head and filled":        {fill(head(len(full), full...), 0xff, 700), ""},
		"head of a longer index": {head(len(full)+200, fill(full, 0, 200)...), ""},
		"filled beyond bounds":   {fill(der, 0xff, 9<<10), countersign.TooLarge},
		"something behind it":    {fill(der, 0x41, 3), countersign.BadRequest},
		"another behind it":      {append(fill(der, 0xff, 2), der...), countersign.BadRequest},
		"cut off":                {der[:len(der)-1], countersign.BadRequest},
		"length too large":       {head(len(full)+1, full...), countersign.BadRequest},
		"head alone":             {head(0), countersign.BadRequest},
		"partial certificate":    {append([]byte{0x10, 0x01, 0x01, 0, 9}, der...), countersign.BadRequest},
		"fill alone":             {fill(nil, 0xff, 500), countersign.BadRequest},
	} {
		ev := attest.TPMEvidence{EKPublic: ek, AKPublic: softAK(t, nil), EKCertificate: tt.stored}
		got, err := attest.IdentifyTPM(ev, attest.TPMOptions{Anchors: []attest.Anchor{{Certificate: m.root}}, Now: time.Now()})
		if code := countersign.CodeOf(err); code != tt.code {
			t.Errorf("%s: got %v, want %q", name, err, tt.code)
			continue
		}
		if cert, perr := x509.ParseCertificate(der); perr != nil || err == nil && got.EKThumbprint != attest.ThumbprintOf(cert) {
			t.Errorf("%s: got thumbprint %s, want that of the certificate alone", name, got.EKThumbprint)
		}
	}
}
