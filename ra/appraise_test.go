package ra_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/test/kit"
)

var boss = ra.By{Actor: "operator:boss", Via: "test"}

// everyMethod is what a fleet may open.
var everyMethod = []countersign.Method{
	countersign.MethodToken, countersign.MethodFactory, countersign.MethodClaim, countersign.MethodIDevID,
	countersign.MethodThumbprint, countersign.MethodKey, countersign.MethodGroup, countersign.MethodTPM,
}

// rules opens a fleet to every method under these rules.
func (w *world) rules(t *testing.T, fleet string, u countersign.Rules) {
	t.Helper()
	_, err := w.provisioner().SaveFleet(t.Context(), fleet, func(f *countersign.Fleet) { f.Methods, f.Rules = everyMethod, u }, boss)
	if err != nil {
		t.Fatal(err)
	}
}

// shows makes a request on other evidence than a token.
func shows(t kit.TB, key *ecdsa.PrivateKey, cn string, ev countersign.Evidence) countersign.EnrollRequest {
	t.Helper()
	r := enrollment(t, key, cn, "")
	r.Evidence = ev
	return r
}

// claim makes a claim certificate within bounds.
func (w *world) claim(t *testing.T, bounds registry.Credential) (*x509.Certificate, provision.Claim) {
	t.Helper()
	if bounds.UsesMax == 0 {
		bounds.UsesMax = 100
	}
	bounds.ExpiresAt = w.Now().Add(24 * time.Hour)
	c, err := w.provisioner().CreateClaim(t.Context(), bounds, nil, false, boss)
	if err != nil {
		t.Fatal(err)
	}
	return firstOf(t, c.Chain), c
}

func firstOf(t *testing.T, chain string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(chain))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func peer(c ...*x509.Certificate) countersign.Evidence { return countersign.Evidence{Peer: c} }

// sas signs a token for a device as Azure's libraries do.
func sas(key []byte, fleet, device string, expires time.Time) countersign.Evidence {
	sr := url.QueryEscape(fleet + "/registrations/" + device)
	se := fmt.Sprint(expires.Unix())
	m := hmac.New(sha256.New, key)
	m.Write([]byte(sr + "\n" + se))
	sig := url.QueryEscape(base64.StdEncoding.EncodeToString(m.Sum(nil)))
	return countersign.Evidence{Token: "SharedAccessSignature sr=" + sr + "&sig=" + sig + "&se=" + se + "&skn=registration"}
}

// selfSigned makes a certificate that only its thumbprint vouches for.
func selfSigned(t *testing.T, from, to time.Time) *x509.Certificate {
	t.Helper()
	key := kit.Key(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "self"}, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func thumb(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// way is one method: evidence for a device, made anew at each call where the
// method has anything to make, and old evidence where the operator gave none since.
type way struct {
	method countersign.Method
	make   func(t *testing.T, w *world, device string) countersign.Evidence
	bound  bool // the evidence is for this one device
	newer  bool // each is a leave that the operator gives anew
}

// ways sets a world up for every method and lists them.
func ways(t *testing.T, w *world) []way {
	t.Helper()
	m := newMaker(t, w.Now())
	if _, err := w.provisioner().RegisterAuthority(t.Context(), ca.Registration{ID: "maker", Certificate: m.cert.Raw, Override: true}, boss); err != nil {
		t.Fatal(err)
	}
	w.rules(t, "default", countersign.Rules{Authorities: []string{"maker"}})
	w.rules(t, "other", countersign.Rules{})
	_, group, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Kind: countersign.MethodGroup, Label: "line"}, provision.SymmetricKeys{}, boss)
	if err != nil {
		t.Fatal(err)
	}
	groupKey, err := attest.ParseSymmetricKey(group.Primary)
	if err != nil {
		t.Fatal(err)
	}
	shared, _ := w.claim(t, registry.Credential{Label: "box"})
	return []way{
		{method: countersign.MethodToken, bound: true, newer: true, make: func(t *testing.T, w *world, device string) countersign.Evidence {
			return countersign.Evidence{Token: w.token(t, registry.Credential{Device: device})}
		}},
		{method: countersign.MethodFactory, make: func(_ *testing.T, _ *world, device string) countersign.Evidence {
			return countersign.Evidence{Voucher: &countersign.Voucher{Actor: "operator:line", Item: device}}
		}},
		{method: countersign.MethodClaim, make: func(*testing.T, *world, string) countersign.Evidence { return peer(shared) }},
		{method: countersign.MethodIDevID, bound: true, make: func(t *testing.T, w *world, device string) countersign.Evidence {
			return peer(m.device(t, device, w.Now()))
		}},
		{method: countersign.MethodThumbprint, bound: true, newer: true, make: func(t *testing.T, w *world, device string) countersign.Evidence {
			c := selfSigned(t, w.Now().Add(-time.Hour), w.Now().Add(time.Hour))
			if _, err := w.provisioner().CreateThumbprint(t.Context(), registry.Credential{Device: device, Fleet: "default"}, thumb(c), "", boss); err != nil {
				t.Fatal(err)
			}
			return peer(c)
		}},
		{method: countersign.MethodKey, bound: true, newer: true, make: func(t *testing.T, w *world, device string) countersign.Evidence {
			list, _, err := w.Registry.Credentials(t.Context(), registry.CredentialFilter{Kind: countersign.MethodKey, Device: device})
			if err != nil {
				t.Fatal(err)
			}
			for _, old := range list {
				if old.State == registry.CredentialActive {
					if _, _, err := w.provisioner().StopCredential(t.Context(), old.ID, "rotated", boss); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, k, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Device: device}, provision.SymmetricKeys{}, boss)
			if err != nil {
				t.Fatal(err)
			}
			key, err := attest.ParseSymmetricKey(k.Secondary)
			if err != nil {
				t.Fatal(err)
			}
			return sas(key, "default", device, w.Now().Add(time.Hour))
		}},
		{method: countersign.MethodGroup, bound: true, make: func(_ *testing.T, w *world, device string) countersign.Evidence {
			return sas(attest.DeriveKey(groupKey, device), "default", device, w.Now().Add(time.Hour))
		}},
		{method: countersign.MethodTPM, bound: true, newer: true, make: func(t *testing.T, w *world, device string) countersign.Evidence {
			ek := rand.Text()
			sum := sha256.Sum256([]byte(ek))
			hash := hex.EncodeToString(sum[:])
			if _, err := w.provisioner().CreateTPM(t.Context(), registry.Credential{Device: device}, nil, hash, boss); err != nil {
				t.Fatal(err)
			}
			return countersign.Evidence{TPM: &countersign.TPMProof{EKHash: hash}}
		}},
	}
}

// TestEveryWayIn walks one device through its life by each method.
func TestEveryWayIn(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, way := range ways(t, w) {
			t.Run(string(way.method), func(t *testing.T) { walk(t, w, way) })
		}
	})
}

func walk(t *testing.T, w *world, way way) {
	id, key := "dev-"+string(way.method), kit.Key(t)
	ev := way.make(t, w, id)
	first, err := w.Enroll(t.Context(), shows(t, key, id, ev))
	if err != nil {
		t.Fatalf("first: %v", err)
	}
	if c := w.record(t, leaf(t, first)); c.Method != string(way.method) || !strings.HasPrefix(c.Evidence, string(way.method)+":") {
		t.Errorf("got method %s, evidence %s on record", c.Method, c.Evidence)
	}
	w.clock.Advance(time.Second)
	again, err := w.Enroll(t.Context(), shows(t, key, id, ev))
	if err != nil || !again.Again || again.Serial != first.Serial {
		t.Fatalf("retry: got %+v, %v, want the same certificate", again, err)
	}
	w.use(t, leaf(t, first))
	for _, ev := range []countersign.Evidence{ev, way.make(t, w, id)} {
		_, err = w.Enroll(t.Context(), shows(t, kit.Key(t), id, ev))
		if c := countersign.CodeOf(err); c != countersign.DeviceIsActive && c != countersign.CredentialSpent && c != countersign.CredentialExpire {
			t.Errorf("active device, another key: got %v", err)
		}
	}
	if c := w.record(t, leaf(t, first)); c.State != countersign.CertActive {
		t.Fatalf("the certificate in use is %s", c.State)
	}
	w.standings(t, way, id, ev)
	_, err = w.Enroll(t.Context(), func() countersign.EnrollRequest {
		r := shows(t, kit.Key(t), "else-"+id, way.make(t, w, "else-"+id))
		r.Fleet = "other"
		return r
	}())
	if way.method != countersign.MethodFactory { // an operator may vouch in any fleet
		if c := countersign.CodeOf(err); c != countersign.NotAllowed && c != countersign.CertUnknown && c != countersign.BadCredential {
			t.Errorf("another fleet: got %v", err)
		}
	}
	if way.bound {
		_, err = w.Enroll(t.Context(), shows(t, kit.Key(t), "thief-"+id, way.make(t, w, "victim-"+id)))
		kit.WantCode(t, err, countersign.SubjectMismatch)
	}
}

// standings tries evidence on a device that is suspended, revoked and retired.
func (w *world) standings(t *testing.T, way way, id string, old countersign.Evidence) {
	t.Helper()
	try := func(ev countersign.Evidence) error {
		_, err := w.Enroll(t.Context(), shows(t, kit.Key(t), id, ev))
		return err
	}
	if _, err := w.Suspend(t.Context(), ra.Act{Device: id, Note: "test", Actor: boss.Actor}); err != nil {
		t.Fatal(err)
	}
	kit.WantCode(t, try(way.make(t, w, id)), countersign.DeviceOnHold)
	before := way.make(t, w, id)
	w.clock.Advance(time.Second)
	if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: id, Reason: countersign.KeyCompromise, Actor: boss.Actor}); err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(time.Second)
	for _, ev := range []countersign.Evidence{old, before} {
		if c := countersign.CodeOf(try(ev)); c != countersign.NotAllowed && c != countersign.CredentialSpent && c != countersign.CredentialExpire {
			t.Errorf("revoked device, evidence from before: got %q", c)
		}
	}
	err := try(way.make(t, w, id))
	switch {
	case way.newer && err != nil:
		t.Errorf("revoked device, leave given since: %v", err)
	case !way.newer:
		kit.WantCode(t, err, countersign.NotAllowed)
	}
	if _, err := w.Retire(t.Context(), ra.Act{Device: id, Note: "test", Actor: boss.Actor}); err != nil {
		t.Fatal(err)
	}
	if way.method == countersign.MethodFactory || way.method == countersign.MethodClaim || way.method == countersign.MethodIDevID || way.method == countersign.MethodGroup {
		kit.WantCode(t, try(way.make(t, w, id)), countersign.DeviceGone)
	}
}

// TestEveryWayInOnceAtOnce races requests of one device, each with its own key.
func TestEveryWayInOnceAtOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, way := range ways(t, w) {
			t.Run(string(way.method), func(t *testing.T) {
				id := "race-" + string(way.method)
				ev := way.make(t, w, id)
				var won, lost sync.Map
				var running sync.WaitGroup
				for range 6 {
					req := shows(t, kit.Key(t), id, ev)
					running.Go(func() {
						g, err := w.Enroll(context.WithoutCancel(t.Context()), req)
						if err == nil {
							won.Store(g.Serial, true)
						} else {
							lost.Store(err.Error(), countersign.CodeOf(err))
						}
					})
				}
				running.Wait()
				if n := w.count(t, `certificate WHERE device = $1 AND state = 'pending'`, id); n != 1 {
					t.Errorf("got %d good certificates, want 1", n)
				}
				lost.Range(func(why, code any) bool {
					if code == countersign.Internal || code == countersign.Unavailable {
						t.Errorf("lost by %v: %v", code, why)
					}
					return true
				})
			})
		}
	})
}

func TestSingleUseCredentialAtOnceIsSpentOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{})
		temporary, err := w.provisioner().CreateClaim(t.Context(), registry.Credential{}, nil, true, boss)
		if err != nil {
			t.Fatal(err)
		}
		for name, ev := range map[string]countersign.Evidence{
			"token": {Token: w.token(t, registry.Credential{})}, "claim": peer(firstOf(t, temporary.Chain)),
		} {
			errs := make(chan error, 8)
			for i := range cap(errs) {
				req := shows(t, kit.Key(t), fmt.Sprintf("%s-%d", name, i), ev)
				go func() {
					_, err := w.Enroll(context.WithoutCancel(t.Context()), req)
					errs <- err
				}()
			}
			won := 0
			for range cap(errs) {
				if err := <-errs; err == nil {
					won++
				} else {
					kit.WantCode(t, err, countersign.CredentialSpent)
				}
			}
			if won != 1 {
				t.Errorf("%s: %d won, want 1", name, won)
			}
		}
	})
}

func TestCredentialBounds(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{})
		at := func(addr string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(addr), 1) }
		nets := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
		for _, tt := range []struct {
			name, device, from string
			bounds             registry.Credential
			want               countersign.Code
		}{
			{"IPv4 in", "a", "192.0.2.255", registry.Credential{Networks: nets}, ""},
			{"IPv4 out", "b", "192.0.3.0", registry.Credential{Networks: nets}, countersign.NotAllowed},
			{"IPv6 in", "c", "2001:db8:ffff::1", registry.Credential{Networks: nets}, ""},
			{"IPv6 out", "d", "2001:db9::1", registry.Credential{Networks: nets}, countersign.NotAllowed},
			{"mapped in", "e", "::ffff:192.0.2.1", registry.Credential{Networks: nets}, ""},
			{"mapped out", "f", "::ffff:192.0.3.1", registry.Credential{Networks: nets}, countersign.NotAllowed},
			{"too early", "g", "192.0.2.1", registry.Credential{NotBefore: w.Now().Add(time.Hour)}, countersign.CredentialExpire},
			{"range in", "pump-0500", "192.0.2.1", registry.Credential{Devices: []string{"pump-0001..pump-0500"}}, ""},
			{"range out", "pump-0501", "192.0.2.1", registry.Credential{Devices: []string{"pump-0001..pump-0500"}}, countersign.NotAllowed},
			{"range shorter", "pump-01", "192.0.2.1", registry.Credential{Devices: []string{"pump-0001..pump-0500"}}, countersign.NotAllowed},
			{"pattern in", "valve-9", "192.0.2.1", registry.Credential{Devices: []string{"x", "valve-?"}}, ""},
			{"pattern out", "valve-99", "192.0.2.1", registry.Credential{Devices: []string{"x", "valve-?"}}, countersign.NotAllowed},
		} {
			req := enrollment(t, kit.Key(t), tt.device, w.token(t, tt.bounds))
			req.Remote = at(tt.from)
			if _, err := w.Enroll(t.Context(), req); countersign.CodeOf(err) != tt.want {
				t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
			}
		}
	})
}

func TestRateCountsEachUseOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		secret := w.token(t, registry.Credential{UsesMax: 10, PerMinute: 3})
		for i := range 3 {
			req := enrollment(t, kit.Key(t), fmt.Sprint("pump-", i), secret)
			for range 5 { // to ask what would be is no use
				if e, err := w.Explain(t.Context(), req); err != nil || e.Decision != "issue" {
					t.Fatalf("Explain: got %+v, %v", e, err)
				}
			}
			if _, err := w.Enroll(t.Context(), req); err != nil {
				t.Fatalf("use %d: %v", i, err)
			}
		}
		last := enrollment(t, kit.Key(t), "pump-3", secret)
		_, err := w.Enroll(t.Context(), last)
		kit.WantCode(t, err, countersign.RateLimited)
		w.clock.Advance(20 * time.Second)
		if _, err := w.Enroll(t.Context(), last); err != nil {
			t.Errorf("a third of a minute later: %v", err)
		}
	})
}

func TestClaimOutsideItsBoundsStops(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{})
		for _, far := range []bool{false, true} {
			cert, made := w.claim(t, registry.Credential{Devices: []string{"pump-*"}, Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
			req := shows(t, kit.Key(t), "valve-1", peer(cert))
			if far {
				req = shows(t, kit.Key(t), "pump-1", peer(cert))
				req.Remote = netip.MustParseAddrPort("198.51.100.1:1")
			}
			if e, err := w.Explain(t.Context(), req); err != nil || e.Decision != "refuse" || countersign.Code(e.Code) != countersign.NotAllowed {
				t.Errorf("Explain: got %+v, %v, want refuse", e, err)
			}
			if c, err := w.Registry.Credential(t.Context(), w.DB, made.ID); err != nil || c.State != registry.CredentialActive {
				t.Fatalf("after Explain: got %s, %v, want an active claim", c.State, err)
			}
			errs := make(chan error, 4)
			for range cap(errs) {
				go func() {
					_, err := w.Enroll(context.WithoutCancel(t.Context()), req)
					errs <- err
				}()
			}
			for range cap(errs) {
				if c := countersign.CodeOf(<-errs); c != countersign.NotAllowed && c != countersign.CredentialExpire {
					t.Errorf("got %q, want not_allowed, or credential_expired once it is stopped", c)
				}
			}
			_, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-1", peer(cert)))
			kit.WantCode(t, err, countersign.CredentialExpire)
			found := 0
			for _, e := range w.events(t, event.Filter{Type: countersign.FindingClaim}) {
				if e.Data["credential"] == made.ID {
					found++
				}
			}
			if found != 1 {
				t.Errorf("got %d findings, want 1", found)
			}
		}
		if n := w.count(t, `certificate WHERE device <> ''`); n != 0 {
			t.Errorf("got %d certificates, want none", n)
		}
	})
}

func TestClaimsOwnKeyIsNoDevicesKey(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{})
		cert, made := w.claim(t, registry.Credential{})
		block, _ := pem.Decode([]byte(made.Key))
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Enroll(t.Context(), shows(t, key.(*ecdsa.PrivateKey), "pump-1", peer(cert)))
		kit.WantCode(t, err, countersign.KeyReused)
	})
}

func TestGroupKeyItselfIsRefusedAndReported(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{})
		_, k, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Kind: countersign.MethodGroup, Label: "line"}, provision.SymmetricKeys{}, boss)
		if err != nil {
			t.Fatal(err)
		}
		key, err := attest.ParseSymmetricKey(k.Primary)
		if err != nil {
			t.Fatal(err)
		}
		req := shows(t, kit.Key(t), "pump-1", sas(key, "default", "pump-1", w.Now().Add(time.Hour)))
		if _, err := w.Explain(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if n := len(w.events(t, event.Filter{Type: countersign.FindingGroupKey})); n != 0 {
			t.Errorf("got %d findings of a dry run", n)
		}
		_, err = w.Enroll(t.Context(), req)
		kit.WantCode(t, err, countersign.NotAllowed)
		if n := len(w.events(t, event.Filter{Type: countersign.FindingGroupKey})); n != 1 {
			t.Errorf("got %d findings, want 1", n)
		}
	})
}

func TestSASTokenThatIsWrong(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{})
		_, k, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Device: "Pump-1"}, provision.SymmetricKeys{}, boss)
		if err != nil {
			t.Fatal(err)
		}
		key, err := attest.ParseSymmetricKey(k.Primary)
		if err != nil {
			t.Fatal(err)
		}
		good, cn := sas(key, "default", "Pump-1", w.Now().Add(time.Hour)), "Pump-1"
		for i, tt := range []struct {
			name string
			ev   countersign.Evidence
			cn   string
			want countersign.Code
		}{
			{"expired", sas(key, "default", cn, w.Now().Add(-time.Hour)), cn, countersign.CredentialExpire},
			{"for ever", sas(key, "default", cn, w.Now().Add(10*365*24*time.Hour)), cn, countersign.Misconfigured},
			{"another key", sas([]byte(rand.Text()), "default", cn, w.Now().Add(time.Hour)), cn, countersign.BadCredential},
			{"another fleet", sas(key, "other", cn, w.Now().Add(time.Hour)), cn, countersign.Misconfigured},
			{"another device", sas(key, "default", "pump-2", w.Now().Add(time.Hour)), "pump-2", countersign.BadCredential},
			{"another name asked", good, "pump-2", countersign.SubjectMismatch},
			{"truncated", countersign.Evidence{Token: good.Token[:len(good.Token)-40]}, cn, countersign.BadRequest},
			{"oversized", countersign.Evidence{Token: good.Token + strings.Repeat("x", 1<<16)}, cn, countersign.TooLarge},
			{"no scheme", countersign.Evidence{Token: strings.TrimPrefix(good.Token, "SharedAccessSignature ")}, cn, countersign.BadCredential},
		} {
			req := shows(t, kit.Key(t), tt.cn, tt.ev)
			req.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 1}), 1) // a guesser waits longer each time
			if _, err := w.Enroll(t.Context(), req); countersign.CodeOf(err) != tt.want {
				t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
			}
		}
		if _, err := w.Enroll(t.Context(), shows(t, kit.Key(t), cn, good)); err != nil {
			t.Errorf("the right one: %v", err)
		}
	})
}

func TestThumbprintPrimaryAndSecondary(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{})
		now := w.Now()
		one, two := selfSigned(t, now.Add(-time.Hour), now.Add(time.Hour)), selfSigned(t, now.Add(-time.Hour), now.Add(time.Hour))
		register := func(device string, first, second *x509.Certificate) error {
			b := ""
			if second != nil {
				b = thumb(second)
			}
			_, err := w.provisioner().CreateThumbprint(t.Context(), registry.Credential{Device: device}, thumb(first), b, boss)
			return err
		}
		if err := register("pump-1", one, two); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*x509.Certificate{one, two} {
			kit.WantCode(t, register("pump-2", c, nil), countersign.Conflict)
			kit.WantCode(t, register("pump-2", selfSigned(t, now, now.Add(time.Hour)), c), countersign.Conflict)
		}
		for slot, c := range map[string]*x509.Certificate{"primary": one, "secondary": two} {
			e, err := w.Explain(t.Context(), shows(t, kit.Key(t), "pump-1", peer(c)))
			if err != nil || e.Decision != "issue" || e.Facts["certificate"] != slot {
				t.Errorf("%s: got %+v, %v", slot, e, err)
			}
		}
		stale, early := selfSigned(t, now.Add(-2*time.Hour), now.Add(-time.Hour)), selfSigned(t, now.Add(time.Hour), now.Add(2*time.Hour))
		if err := register("pump-3", stale, early); err != nil {
			t.Fatal(err)
		}
		_, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-3", peer(stale)))
		kit.WantCode(t, err, countersign.CertExpired)
		_, err = w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-3", peer(early)))
		kit.WantCode(t, err, countersign.CertNotYetValid)
		_, err = w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-4", peer(selfSigned(t, now, now.Add(time.Hour)))))
		kit.WantCode(t, err, countersign.CertUnknown)
	})
}
