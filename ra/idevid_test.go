package ra_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/test/kit"
)

// below makes a CA that m signed; change may alter it.
func (m *maker) below(t *testing.T, now time.Time, change func(*x509.Certificate)) *maker {
	t.Helper()
	key := kit.Key(t)
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: "Maker Line"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{9, 9},
	}
	if change != nil {
		change(tmpl)
	}
	return &maker{key: key, cert: m.sign(t, tmpl, &key.PublicKey)}
}

func (w *world) registers(t *testing.T, g ca.Registration) {
	t.Helper()
	g.Override = true
	if _, err := w.provisioner().RegisterAuthority(t.Context(), g, boss); err != nil {
		t.Fatal(err)
	}
}

func TestFactoryCertificateThatIsWrong(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		now := w.Now()
		m := newMaker(t, now)
		line := m.below(t, now, nil)
		bounded := m.below(t, now, func(c *x509.Certificate) {
			c.Subject.CommonName, c.SubjectKeyId = "Bounded Line", []byte{8, 8}
			c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"pumps.example"}
		})
		gone := m.below(t, now, func(c *x509.Certificate) { c.Subject.CommonName, c.SubjectKeyId = "Gone Line", []byte{7, 7} })
		w.registers(t, ca.Registration{ID: "maker", Certificate: m.cert.Raw, CRLs: [][]byte{m.crl(t, now, gone.cert)}})
		strict := newMaker(t, now)
		strict.cert = strict.sign(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "Strict CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour * 9999),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1, 2, 3},
		}, &strict.key.PublicKey)
		w.rules(t, "default", countersign.Rules{Authorities: []string{"maker"}})
		leafOf := func(m *maker, change func(*x509.Certificate)) *x509.Certificate {
			tmpl := &x509.Certificate{
				Subject: pkix.Name{CommonName: "pump-1"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
				KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte("leaf"),
			}
			if change != nil {
				change(tmpl)
			}
			return m.sign(t, tmpl, &kit.Key(t).PublicKey)
		}
		forged := *leafOf(m, nil)
		forged.Signature = append([]byte{}, forged.Signature...)
		forged.Signature[len(forged.Signature)-1] ^= 1
		long := []*x509.Certificate{leafOf(line, nil)}
		for range 20 {
			long = append(long, line.cert)
		}
		for _, tt := range []struct {
			name  string
			chain []*x509.Certificate
			want  countersign.Code
		}{
			{"expired", []*x509.Certificate{leafOf(m, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })}, countersign.CertExpired},
			{"not yet valid", []*x509.Certificate{leafOf(m, func(c *x509.Certificate) { c.NotBefore = now.Add(countersign.ClockSkew + time.Second) })}, countersign.CertNotYetValid},
			{"another CA", []*x509.Certificate{leafOf(newMaker(t, now), nil)}, countersign.Misconfigured},
			{"forged", []*x509.Certificate{&forged}, countersign.Misconfigured},
			{"truncated chain", []*x509.Certificate{leafOf(line, nil)}, countersign.CertUnknown},
			{"oversized chain", long, countersign.TooLarge},
			{"breach of name constraints", []*x509.Certificate{leafOf(bounded, func(c *x509.Certificate) { c.DNSNames = []string{"pump.evil.example"} }), bounded.cert}, countersign.Misconfigured},
			{"intermediate revoked", []*x509.Certificate{leafOf(gone, nil), gone.cert}, countersign.CertIsRevoked},
			{"server's certificate", []*x509.Certificate{leafOf(m, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}, countersign.Misconfigured},
			{"two names", []*x509.Certificate{leafOf(m, func(c *x509.Certificate) {
				c.Subject = pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "pump-1"}, {Type: []int{2, 5, 4, 3}, Value: "pump-2"}}}
			})}, countersign.Misconfigured},
		} {
			_, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "", peer(tt.chain...)))
			if code := countersign.CodeOf(err); code != tt.want && (tt.name != "another CA" || code != countersign.CertUnknown) {
				t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
			}
			w.Ledger.Succeed("pump-1")
		}
		w.registers(t, ca.Registration{ID: "strict", Certificate: strict.cert.Raw, RequireCRL: true})
		w.rules(t, "default", countersign.Rules{Authorities: []string{"strict"}})
		_, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "", peer(leafOf(strict, nil))))
		kit.WantCode(t, err, countersign.Unavailable)
		if err := w.provisioner().SetCRLs(t.Context(), "strict", ca.Lists{CRLs: [][]byte{strict.crl(t, now)}}, "", boss); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "", peer(leafOf(strict, nil)))); err != nil {
			t.Errorf("with its list: %v", err)
		}
	})
}

// TestTokenAndFactoryCertificateOfAnotherFleet wants the certificate judged by the
// fleet of the token where the request names none.
func TestTokenBesideACertificateIsJudgedByItsFleet(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := newMaker(t, w.Now())
		w.registers(t, ca.Registration{ID: "maker", Certificate: m.cert.Raw})
		w.rules(t, "other", countersign.Rules{Authorities: []string{"maker"}})
		ev := peer(m.device(t, "pump-1", w.Now()))
		ev.Token = w.token(t, registry.Credential{Fleet: "other"})
		_, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-2", ev))
		kit.WantCode(t, err, countersign.SubjectMismatch)
		if _, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-1", ev)); err != nil {
			t.Errorf("the same device: %v", err)
		}
	})
}

func TestKeyServesOneDevice(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		key := kit.Key(t)
		if _, err := w.Enroll(t.Context(), enrollment(t, key, "pump-1", w.token(t, registry.Credential{}))); err != nil {
			t.Fatal(err)
		}
		_, err := w.Enroll(t.Context(), enrollment(t, key, "pump-2", w.token(t, registry.Credential{})))
		kit.WantCode(t, err, countersign.KeyReused)
		other := w.active(t, "pump-3")
		_, err = w.Reenroll(t.Context(), renewal(t, other, key))
		kit.WantCode(t, err, countersign.KeyReused)
		for device, want := range map[string]int{"pump-1": 2, "pump-2": 1, "pump-3": 1} {
			if n := len(w.events(t, event.Filter{Type: countersign.FindingKeyReuse, Device: device})); n != want {
				t.Errorf("%s: got %d findings, want %d", device, n, want)
			}
		}
		shared, errs := kit.Key(t), make(chan error, 4)
		for i := range cap(errs) {
			req := enrollment(t, shared, "twin-"+string(rune('a'+i)), w.token(t, registry.Credential{}))
			go func() { _, err := w.Enroll(t.Context(), req); errs <- err }()
		}
		won := 0
		for range cap(errs) {
			if err := <-errs; err == nil {
				won++
			} else {
				kit.WantCode(t, err, countersign.KeyReused)
			}
		}
		if won != 1 {
			t.Errorf("one key was given to %d devices", won)
		}
	})
}
