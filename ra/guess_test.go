package ra_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/test/kit"
)

// site is an address with devices behind it, good and bad.
type site struct {
	*world
	t     *testing.T
	maker *maker
	line  []byte // a group key
}

func newSite(t *testing.T, w *world) *site {
	t.Helper()
	s := &site{world: w, t: t, maker: newMaker(t, w.Now())}
	s.registers(t, registration("maker", s.maker))
	all := []countersign.AccessKind{
		countersign.AccessCertificate, countersign.AccessPassword, countersign.AccessSecret, countersign.AccessSCRAM, countersign.AccessSAS, countersign.AccessToken,
	}
	for _, fleet := range []string{"default", "other"} {
		s.rules(t, fleet, countersign.Rules{Authorities: []string{"maker"}, Access: countersign.Access{Kinds: all}})
	}
	s.line = s.group("default", "line")
	w.Access.Tokens = &access.Tokens{DB: w.DB, Now: w.Now, Key: []byte(strings.Repeat("k", 32))}
	return s
}

func (s *site) group(fleet, label string) []byte {
	s.t.Helper()
	_, k, err := s.world.provisioner().CreateKey(s.t.Context(), registry.Credential{Kind: countersign.MethodGroup, Fleet: fleet, Label: label}, provision.SymmetricKeys{}, boss)
	return s.symmetric(k, err)
}

func (s *site) key(device string) []byte {
	s.t.Helper()
	_, k, err := s.world.provisioner().CreateKey(s.t.Context(), registry.Credential{Device: device}, provision.SymmetricKeys{}, boss)
	return s.symmetric(k, err)
}

func (s *site) symmetric(k provision.SymmetricKeys, err error) []byte {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := attest.ParseSymmetricKey(k.Primary)
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

// stop stops what is registered for a device, or under a label.
func (s *site) stop(kind countersign.Method, name string) {
	s.t.Helper()
	list, _, err := s.Registry.Credentials(s.t.Context(), registry.CredentialFilter{Kind: kind})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range list {
		if c.State == registry.CredentialActive && (c.Device == name || c.Label == name) {
			if _, _, err := s.world.provisioner().StopCredential(s.t.Context(), c.ID, "test", boss); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// attempt is one way in for a device behind an address.
type attempt func(from netip.AddrPort, id string) error

func (s *site) enrolls(make func(id string) (countersign.Evidence, string)) attempt {
	return func(from netip.AddrPort, id string) error {
		ev, cn := make(id)
		req := shows(s.t, kit.Key(s.t), cn, ev)
		req.Remote = from
		_, err := s.Enroll(context.WithoutCancel(s.t.Context()), req)
		return err
	}
}

func (s *site) connects(make func(id string) countersign.Connection) attempt {
	return func(from netip.AddrPort, id string) error {
		c := make(id)
		c.Gateway, c.Remote = "test", from
		v := s.Admit(context.WithoutCancel(s.t.Context()), c)
		if v.Allow {
			return nil
		}
		return countersign.Errorf(v.Code, "%s", v.Reason)
	}
}

func (s *site) hour() time.Time { return s.Now().Add(time.Hour) }

// honestFaults are what goes wrong in the field without anybody guessing: evidence
// that is signed, or was good once, or is for something else.
func (s *site) honestFaults() map[string]attempt {
	t, w := s.t, s.world
	token := func(c registry.Credential, spoil func()) attempt {
		c.Label = fmt.Sprint("label-", c.Label)
		secret := w.token(t, c)
		if spoil != nil {
			spoil()
		}
		return s.enrolls(func(id string) (countersign.Evidence, string) { return countersign.Evidence{Token: secret}, id })
	}
	chain := func(change func(*x509.Certificate)) attempt {
		return s.enrolls(func(id string) (countersign.Evidence, string) {
			c := &x509.Certificate{
				Subject: pkix.Name{CommonName: id}, NotBefore: w.Now().Add(-time.Hour), NotAfter: s.hour(), KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte(id),
			}
			change(c)
			return peer(s.maker.sign(t, c, &kit.Key(t).PublicKey)), id
		})
	}
	faults := map[string]attempt{
		"token stopped":          token(registry.Credential{Label: "stopped", UsesMax: 100}, func() { s.stop(countersign.MethodToken, "label-stopped") }),
		"token not yet good":     token(registry.Credential{NotBefore: s.hour()}, nil),
		"token of other network": token(registry.Credential{UsesMax: 100, Networks: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}, nil),
		"token of other device":  token(registry.Credential{Device: "somebody"}, nil),
		"token of other fleet":   token(registry.Credential{Fleet: "other", UsesMax: 100, Devices: []string{"x*"}}, nil),
		"token spent": token(registry.Credential{Label: "spent"}, func() {
			w.exec(t, `UPDATE credential SET uses = 1 WHERE label = 'label-spent'`)
		}),
		"token expired": token(registry.Credential{Label: "old"}, func() {
			w.exec(t, `UPDATE credential SET expires_at = 1 WHERE label = 'label-old'`)
		}),
		"chain with a wrong EKU": chain(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"chain of a CA":          chain(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }),
		"chain expired":          chain(func(c *x509.Certificate) { c.NotAfter = w.Now().Add(-time.Minute) }),
		"id field missing":       chain(func(c *x509.Certificate) { c.Subject = pkix.Name{Organization: []string{"Pump Works"}} }),
		"id that cannot be one":  chain(func(c *x509.Certificate) { c.Subject.CommonName = "pump 1" }),
		"unknown maker": s.enrolls(func(id string) (countersign.Evidence, string) {
			return peer(newMaker(t, w.Now()).device(t, id, w.Now())), id
		}),
		"self-signed unknown": s.enrolls(func(id string) (countersign.Evidence, string) {
			return peer(selfSigned(t, w.Now().Add(-time.Hour), s.hour())), id
		}),
		"TPM not registered": s.enrolls(func(id string) (countersign.Evidence, string) {
			return countersign.Evidence{TPM: &countersign.TPMProof{EKHash: strings.Repeat("ab", 32)}}, id
		}),
		"nothing shown": s.enrolls(func(id string) (countersign.Evidence, string) { return countersign.Evidence{}, id }),
		"SAS unreadable": s.enrolls(func(id string) (countersign.Evidence, string) {
			return countersign.Evidence{Token: "SharedAccessSignature sr=x"}, id
		}),
		"SAS for something else": s.enrolls(func(id string) (countersign.Evidence, string) {
			ev := sas(s.line, "default", id, s.hour())
			ev.Token = strings.Replace(ev.Token, "registrations", "devices", 1)
			return ev, id
		}),
	}
	addKeyFaults(s, faults)
	addClaimFaults(s, faults)
	return faults
}

// addKeyFaults adds those of symmetric keys, when enrolling and connecting.
func addKeyFaults(s *site, faults map[string]attempt) {
	t, w := s.t, s.world
	own, old, stopped := s.key("own"), s.key("rotated"), s.key("stopped")
	s.stop(countersign.MethodKey, "rotated")
	s.key("rotated")
	s.stop(countersign.MethodKey, "stopped")
	elsewhere, gone := s.group("other", "elsewhere"), s.group("default", "gone")
	s.stop(countersign.MethodGroup, "gone")
	for _, id := range []string{"own", "rotated", "stopped", "member"} {
		if _, err := w.provisioner().CreateDevice(t.Context(), countersign.Device{ID: id}, boss); err != nil {
			t.Fatal(err)
		}
	}
	nobodys := s.key("nobody")
	for name, tt := range map[string]struct {
		key     []byte
		id      string
		expires time.Time
	}{
		"expired":              {own, "own", w.Now().Add(-time.Hour)},
		"too far ahead":        {own, "own", w.Now().Add(400 * 24 * time.Hour)},
		"key stopped":          {stopped, "stopped", s.hour()},
		"key rotated":          {old, "rotated", s.hour()},
		"group stopped":        {attest.DeriveKey(gone, "member"), "member", s.hour()},
		"group of other":       {attest.DeriveKey(elsewhere, "member"), "member", s.hour()},
		"group beside a key":   {attest.DeriveKey(s.line, "own"), "own", s.hour()},
		"group far ahead":      {attest.DeriveKey(s.line, "member"), "member", w.Now().Add(400 * 24 * time.Hour)},
		"group key itself":     {s.line, "member", s.hour()},
		"device not on record": {nobodys, "nobody", s.hour()},
	} {
		if name != "device not on record" { // it enrolls
			faults["SAS, "+name] = s.enrolls(func(string) (countersign.Evidence, string) { return sas(tt.key, "default", tt.id, tt.expires), tt.id })
		}
		faults["connect by SAS, "+name] = s.connects(func(string) countersign.Connection {
			return countersign.Connection{Username: tt.id, Password: sasPassword(tt.key, "hub/devices/"+tt.id, tt.expires)}
		})
	}
	faults["SAS of other fleet"] = s.enrolls(func(string) (countersign.Evidence, string) { return sas(own, "other", "own", s.hour()), "own" })
	faults["connect by SAS, unreadable"] = s.connects(func(string) countersign.Connection {
		return countersign.Connection{Username: "own", Password: []byte("SharedAccessSignature sr=x")}
	})
	faults["connect by SCRAM, left"] = s.connects(func(string) countersign.Connection {
		x, err := s.Exchange(t.Context(), countersign.Connection{}, "SCRAM-SHA-256")
		if err != nil {
			t.Fatal(err)
		}
		return countersign.Connection{Exchange: x}
	})
}

func addClaimFaults(s *site, faults map[string]attempt) {
	claim := func(label string, bounds registry.Credential, spoil func()) {
		bounds.Label = label
		cert, _ := s.claim(s.t, bounds)
		if spoil != nil {
			spoil()
		}
		faults[label] = s.enrolls(func(id string) (countersign.Evidence, string) { return peer(cert), id })
	}
	claim("claim stopped", registry.Credential{}, func() { s.stop(countersign.MethodClaim, "claim stopped") })
	claim("claim outside", registry.Credential{Devices: []string{"x"}}, nil)
	claim("claim spent", registry.Credential{}, func() { s.exec(s.t, `UPDATE credential SET uses = uses_max WHERE label = 'claim spent'`) })
}

// guesses are the tries of secrets that nobody has given out.
func (s *site) guesses() map[string]attempt {
	s.key("victim")
	for _, id := range []string{"victim"} {
		if _, err := s.world.provisioner().CreateDevice(s.t.Context(), countersign.Device{ID: id}, boss); err != nil {
			s.t.Fatal(err)
		}
	}
	connect := func(password string) attempt {
		return s.connects(func(string) countersign.Connection {
			return countersign.Connection{Username: "victim", Password: []byte(password)}
		})
	}
	return map[string]attempt{
		"token": s.enrolls(func(id string) (countersign.Evidence, string) {
			return countersign.Evidence{Token: countersign.TokenPrefix + strings.Repeat("A", 43)}, id
		}),
		"SAS": s.enrolls(func(string) (countersign.Evidence, string) {
			return sas([]byte("a key that is nobody's"), "default", "victim", s.hour()), "victim"
		}),
		"SAS of nobody": s.enrolls(func(id string) (countersign.Evidence, string) {
			return sas([]byte("a key that is nobody's"), "default", id, s.hour()), id
		}),
		"password":     connect("hunter2"),
		"secret":       connect(access.SecretPrefix + strings.Repeat("A", 43)),
		"access token": connect("eyJhbGciOiJIUzI1NiJ9.e30.AAAA"),
		"SAS to connect": s.connects(func(string) countersign.Connection {
			return countersign.Connection{Username: "victim", Password: sasPassword([]byte("a key that is nobody's"), "hub/devices/victim", s.hour())}
		}),
	}
}

// TestHonestFaultsBlockNobody has twenty devices with the same fault behind one
// address, for each fault there is.
func TestHonestFaultsBlockNobody(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSite(t, w)
		faults := s.honestFaults()
		i := 0
		for name, try := range faults {
			i++
			from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 1}), 1)
			for n := range 20 {
				switch err := try(from, fmt.Sprintf("dev-%d-%d", i, n)); countersign.CodeOf(err) {
				case "", countersign.BadCredential, countersign.Internal, countersign.Unavailable:
					t.Fatalf("%s: got %v, want a fault that is no guess", name, err)
				}
			}
			if err := w.Ledger.Check(from.Addr()); err != nil {
				t.Errorf("%s: its address is blocked: %v", name, err)
			}
			good := enrollment(t, kit.Key(t), fmt.Sprint("good-", i), w.token(t, registry.Credential{}))
			good.Remote = from
			if _, err := w.Enroll(t.Context(), good); err != nil {
				t.Errorf("%s: a neighbor with a good token: %v", name, err)
			}
		}
		for _, kind := range []countersign.EventType{countersign.FindingGuessing, countersign.AddressBlocked} {
			if list := w.events(t, event.Filter{Type: kind}); len(list) > 0 {
				t.Errorf("got %d events %s, the first: %s", len(list), kind, list[0].Reason)
			}
		}
	})
}

// TestGuessesBlockTheirAddressAndNoNeighbor has a guesser behind each address, and
// neighbors that show what cannot be guessed.
func TestGuessesBlockTheirAddressAndNoNeighbor(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		s := newSite(t, w)
		w.Ledger = &lockout.Ledger{DB: w.DB, Now: w.Now, Log: w.Log, Events: w.Events}
		var running sync.WaitGroup
		i := 0
		for name, try := range s.guesses() {
			i++
			from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(i), 1}), 1)
			for n := range 20 { // at once, since each answer is held back for seconds
				running.Go(func() { _ = try(from, fmt.Sprintf("dev-%s-%d", strings.ReplaceAll(name, " ", "-"), n)) })
			}
		}
		running.Wait()
		for n := range i {
			from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(n + 1), 1}), 1)
			if err := w.Ledger.Check(from.Addr()); countersign.CodeOf(err) != countersign.RateLimited {
				t.Errorf("guesser %d of %d is not blocked: %v", n+1, i, err)
			}
		}
		from := netip.MustParseAddrPort("10.2.1.1:1")
		s.neighbors(from)
		if _, err := w.Ledger.Block(t.Context(), lockout.Block{Prefix: netip.MustParsePrefix("10.2.1.0/24"), Until: w.Now().Add(time.Hour)}, boss.Actor, "test"); err != nil {
			t.Fatal(err)
		}
		req := enrollment(t, kit.Key(t), "neighbor-9", w.token(t, registry.Credential{}))
		req.Remote = from
		_, err := w.Enroll(t.Context(), req)
		kit.WantCode(t, err, countersign.RateLimited) // an operator's block is for all
	})
}

// neighbors come in from a blocked address with what is good.
func (s *site) neighbors(from netip.AddrPort) {
	t, w := s.t, s.world
	t.Helper()
	shared, _ := s.claim(t, registry.Credential{})
	for name, try := range map[string]attempt{
		"token": s.enrolls(func(id string) (countersign.Evidence, string) {
			return countersign.Evidence{Token: w.token(t, registry.Credential{})}, id
		}),
		"claim":               s.enrolls(func(id string) (countersign.Evidence, string) { return peer(shared), id }),
		"factory certificate": s.enrolls(func(id string) (countersign.Evidence, string) { return peer(s.maker.device(t, id, w.Now())), id }),
		"SAS": s.enrolls(func(id string) (countersign.Evidence, string) {
			return sas(attest.DeriveKey(s.line, id), "default", id, s.hour()), id
		}),
	} {
		if err := try(from, "neighbor-"+strings.ReplaceAll(name, " ", "-")); err != nil {
			t.Errorf("a neighbor of a guesser, by %s: %v", name, err)
		}
	}
	dev, err := w.provisioner().CreateDevice(t.Context(), countersign.Device{ID: "neighbor"}, boss)
	if err != nil {
		t.Fatal(err)
	}
	_, text, err := w.CreateSecret(t.Context(), access.SecretOrder{Device: dev.ID, Slot: attest.Primary}, boss)
	if err != nil {
		t.Fatal(err)
	}
	secret := s.connects(func(id string) countersign.Connection { return countersign.Connection{Username: id, Password: text} })
	if err := secret(from, dev.ID); err != nil {
		t.Errorf("a neighbor of a guesser, by a secret: %v", err)
	}
	kit.WantCode(t, s.enrolls(func(id string) (countersign.Evidence, string) {
		return countersign.Evidence{Token: countersign.TokenPrefix + strings.Repeat("B", 43)}, id
	})(from, "guesser"), countersign.RateLimited)
}

func registration(id string, m *maker) ca.Registration {
	return ca.Registration{ID: id, Certificate: m.cert.Raw}
}

// sasPassword is what Azure's libraries send as the password of a connection.
func sasPassword(key []byte, resource string, expires time.Time) []byte {
	sr, se := url.QueryEscape(resource), fmt.Sprint(expires.Unix())
	m := hmac.New(sha256.New, key)
	m.Write([]byte(sr + "\n" + se))
	return []byte("SharedAccessSignature sr=" + sr + "&sig=" + url.QueryEscape(base64.StdEncoding.EncodeToString(m.Sum(nil))) + "&se=" + se)
}
