package ra_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

func TestEnrollGrantsACertificateOnRecord(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		g, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{})))
		if err != nil {
			t.Fatal(err)
		}
		c := w.record(t, leaf(t, g))
		if c.State != countersign.CertPending || c.Device != "pump-1" || c.Fleet != "default" || !strings.HasPrefix(c.Evidence, "token:") {
			t.Errorf("got %+v, want a pending certificate of pump-1", c)
		}
		if dev := w.device(t, "pump-1"); dev.State != countersign.DeviceActive {
			t.Errorf("got device %s, want active", dev.State)
		}
		if len(g.Chain) != 2 || g.Again || !g.RenewAt.After(w.clock.Now()) || !g.RenewAt.Before(g.NotAfter) {
			t.Errorf("got chain of %d, again %v, renew at %v before %v", len(g.Chain), g.Again, g.RenewAt, g.NotAfter)
		}
		pool := x509.NewCertPool()
		root, err := x509.ParseCertificate(g.Chain[1])
		if err != nil {
			t.Fatal(err)
		}
		pool.AddCert(root)
		issuing, err := x509.ParseCertificate(g.Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		between := x509.NewCertPool()
		between.AddCert(issuing)
		_, err = leaf(t, g).Verify(x509.VerifyOptions{
			Roots: pool, Intermediates: between, CurrentTime: w.clock.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if err != nil {
			t.Errorf("Verify: %v", err)
		}
		for _, want := range []countersign.EventType{countersign.DeviceCreated, countersign.CertIssued} {
			if got := w.events(t, event.Filter{Device: "pump-1", Type: want}); len(got) != 1 || !strings.HasPrefix(string(got[0].Actor), "token:") {
				t.Errorf("%s: got %+v, want one event by the token", want, got)
			}
		}
	})
}

func TestEnrollRefusesWhatTheRequestLacks(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		weak, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		curve, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		forged := kit.CSR(t, kit.Key(t), "pump-1")
		forged[len(forged)-5] ^= 1
		unbound := w.token(t, registry.Credential{UsesMax: 100})
		bound := w.token(t, registry.Credential{UsesMax: 100, Device: "pump-9"})
		for _, tt := range []struct {
			name, token, fleet string
			csr                []byte
			want               countersign.Code
		}{
			{"garbage", unbound, "", []byte("not a request"), countersign.BadRequest},
			{"empty", unbound, "", nil, countersign.BadRequest},
			{"oversize", unbound, "", make([]byte, countersign.MaxCSR+1), countersign.TooLarge},
			{"short RSA", unbound, "", kit.CSR(t, weak, "pump-1"), countersign.WeakKey},
			{"odd curve", unbound, "", kit.CSR(t, curve, "pump-1"), countersign.WeakKey},
			{"foreign signature", unbound, "", forged, countersign.BadSignature},
			{"no token", "", "", kit.CSR(t, kit.Key(t), "pump-1"), countersign.Unauthenticated},
			{"wrong fleet", unbound, "other", kit.CSR(t, kit.Key(t), "pump-1"), countersign.NotAllowed},
			{"no name", unbound, "", kit.CSR(t, kit.Key(t), ""), countersign.BadRequest},
			{"bad name", unbound, "", kit.CSR(t, kit.Key(t), "pump 1"), countersign.BadRequest},
			{"another device's token", bound, "", kit.CSR(t, kit.Key(t), "pump-1"), countersign.SubjectMismatch},
		} {
			t.Run(tt.name, func(t *testing.T) {
				_, err := w.Enroll(t.Context(), countersign.EnrollRequest{
					CSR: tt.csr, Fleet: tt.fleet, Evidence: countersign.Evidence{Token: tt.token}, Door: "test", Remote: remote,
				})
				kit.WantCode(t, err, tt.want)
				refused := w.events(t, event.Filter{Type: countersign.EnrollRefused, Newest: true})
				if len(refused) == 0 || refused[0].Code != tt.want || refused[0].Reason != countersign.Public(err).Message || refused[0].Remote != remote.String() {
					t.Errorf("got events %+v, want the refusal with its reason first", refused)
				}
			})
		}
		if n := w.count(t, "certificate WHERE device <> ''") + w.count(t, "credential WHERE uses > 0"); n != 0 {
			t.Errorf("got %d certificates and spent tokens, want 0", n)
		}
	})
}

func TestEnrollTakesTheNameFromABoundToken(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	g, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "", w.token(t, registry.Credential{Device: "pump-2"})))
	if err != nil || g.Device != "pump-2" || leaf(t, g).Subject.CommonName != "pump-2" {
		t.Fatalf("got %v, want a certificate of pump-2", err)
	}
}

func TestEnrollOfAClosedFleetIsRefused(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	secret := w.token(t, registry.Credential{Fleet: "other"})
	fleet, err := w.Registry.Fleet(t.Context(), w.DB, "other")
	if err != nil {
		t.Fatal(err)
	}
	fleet.Methods = nil
	write(t, w.DB, func(ctx context.Context, tx *store.Tx) error { return w.Registry.SaveFleet(ctx, tx, fleet) })
	_, err = w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", secret))
	kit.WantCode(t, err, countersign.NotAllowed)
}

func TestEnrollAgainGivesTheSameCertificate(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		key := kit.Key(t)
		var secret string
		write(t, w.DB, func(ctx context.Context, tx *store.Tx) (err error) {
			_, secret, err = w.Registry.CreateToken(ctx, tx, registry.Credential{Fleet: "default", UsesMax: 1}, time.Hour)
			return err
		})
		first, err := w.Enroll(t.Context(), enrollment(t, key, "pump-1", secret))
		if err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Hour + time.Second) // the grant outlives the token
		again, err := w.Enroll(t.Context(), enrollment(t, key, "pump-1", secret))
		if err != nil {
			t.Fatal(err)
		}
		if !again.Again || again.Serial != first.Serial {
			t.Errorf("got certificate %s, again %v, want %s again", again.Serial, again.Again, first.Serial)
		}
		if n := w.count(t, "certificate WHERE device = $1", "pump-1"); n != 1 {
			t.Errorf("got %d certificates, want 1", n)
		}
	})
}

func TestEnrollWithASpentOrExpiredTokenIsRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		spent, stale := w.token(t, registry.Credential{}), w.token(t, registry.Credential{})
		if _, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", spent)); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"pump-1", "pump-2"} {
			_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), id, spent))
			kit.WantCode(t, err, countersign.CredentialSpent)
		}
		w.clock.Advance(ttl + time.Second)
		_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-2", stale))
		kit.WantCode(t, err, countersign.CredentialExpire)
	})
}

func TestEnrollNeverTakesADeviceOver(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		unbound, bound := registry.Credential{UsesMax: 9}, registry.Credential{UsesMax: 9, Device: "pump-1"}
		cert := w.enroll(t, "pump-1")
		try := func(tok registry.Credential) error {
			t.Helper()
			_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", w.token(t, tok)))
			w.clock.Advance(time.Second)
			return err
		}
		kit.WantCode(t, try(unbound), countersign.DeviceIsActive) // although never used
		w.use(t, cert)
		kit.WantCode(t, try(bound), countersign.DeviceIsActive)
		w.renew(t, cert, kit.Key(t)) // pending beside the used one
		kit.WantCode(t, try(bound), countersign.DeviceIsActive)
		if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Cert: w.ref(t, cert), Actor: "operator:o"}); err != nil {
			t.Fatal(err)
		}
		kit.WantCode(t, try(bound), countersign.DeviceIsActive) // the pending one is the device's, not the token's
		kit.WantCode(t, try(registry.Credential{Fleet: "other", Device: "pump-1"}), countersign.NotAllowed)
		if _, err := w.Suspend(t.Context(), ra.Act{Device: "pump-1"}); err != nil {
			t.Fatal(err)
		}
		kit.WantCode(t, try(bound), countersign.DeviceOnHold)
		if _, err := w.Retire(t.Context(), ra.Act{Device: "pump-1"}); err != nil {
			t.Fatal(err)
		}
		kit.WantCode(t, try(bound), countersign.DeviceGone)
	})
}

func TestEnrollOfARevokedDeviceNeedsANewTokenOfItsOwn(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		before := w.token(t, registry.Credential{Device: "pump-1", UsesMax: 9})
		cert := w.active(t, "pump-1")
		if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-1", Reason: countersign.KeyCompromise}); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		for _, secret := range []string{before, w.token(t, registry.Credential{})} {
			_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", secret))
			kit.WantCode(t, err, countersign.NotAllowed)
		}
		g, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{Device: "pump-1"})))
		if err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		w.use(t, leaf(t, g))
		if v := w.connect(t, cert); v.Allow {
			t.Error("the revoked certificate is let in again")
		}
	})
}

func TestEnrollWithABoundTokenCompletesAnUnusedEnrollment(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		secret := w.token(t, registry.Credential{Device: "pump-1", UsesMax: 9})
		first := enrollment(t, kit.Key(t), "pump-1", secret)
		first.Began = w.clock.Now()
		lost, err := w.Enroll(t.Context(), first)
		if err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		second, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", secret))
		if err != nil {
			t.Fatal(err)
		}
		if c := w.record(t, leaf(t, lost)); !c.Replaced || c.State != countersign.CertRevoked {
			t.Errorf("got the first %s, replaced %v, want it replaced", c.State, c.Replaced)
		}
		w.clock.Advance(time.Second)
		_, err = w.Enroll(t.Context(), first) // arrives once more, late
		kit.WantCode(t, err, countersign.Conflict)
		w.use(t, leaf(t, second))
	})
}

func TestEnrollOnceOfTwoWithOneToken(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for round := range 5 {
			secret := w.token(t, registry.Credential{})
			sameDevice := fmt.Sprintf("same-%d", round)
			var wg sync.WaitGroup
			grants := make([]*countersign.Grant, 8)
			for i := range grants {
				id := sameDevice
				if round%2 == 0 {
					id = fmt.Sprintf("other-%d-%d", round, i)
				}
				req := enrollment(t, kit.Key(t), id, secret)
				wg.Go(func() { grants[i], _ = w.Enroll(t.Context(), req) })
			}
			wg.Wait()
			won := 0
			for _, g := range grants {
				if g != nil {
					won++
				}
			}
			if won != 1 {
				t.Errorf("got %d of 8 enrolled, want 1", won)
			}
			if n := w.count(t, "certificate WHERE device <> ''"); n != round+1 {
				t.Errorf("got %d certificates after %d tokens, want one each", n, round+1)
			}
		}
	})
}

func TestEnrollOfOneRequestAtOnceGivesOneCertificate(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, tok := range []registry.Credential{{}, {Device: "bound", UsesMax: 9}} {
			id := "bound"
			if tok.Device == "" {
				id = "unbound"
			}
			req := enrollment(t, kit.Key(t), id, w.token(t, tok))
			var wg sync.WaitGroup
			grants := make([]*countersign.Grant, 8)
			for i := range grants {
				wg.Go(func() {
					g, err := w.Enroll(t.Context(), req)
					if err != nil {
						t.Errorf("%s: %v", id, err)
						return
					}
					grants[i] = g
				})
			}
			wg.Wait()
			for _, g := range grants {
				if g != nil && g.Serial != grants[0].Serial {
					t.Errorf("%s: got certificates %s and %s for one request", id, grants[0].Serial, g.Serial)
				}
			}
			if n := w.count(t, "certificate WHERE device = $1", id); n != 1 {
				t.Errorf("%s: got %d certificates on record, want 1", id, n)
			}
		}
	})
}

func TestWrongTokenIsCountedAndAnsweredSlowly(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	begin := time.Now()
	for range 2 {
		_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", countersign.TokenPrefix+"guess"))
		kit.WantCode(t, err, countersign.BadCredential)
	}
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("two wrong tokens were answered after %v, want them delayed", took)
	}
	if n := w.Ledger.Count(t.Context(), lockout.Failure{Addr: remote.Addr()}).Failures; n != 3 {
		t.Errorf("the ledger counts %d, want 3", n)
	}
	e := w.events(t, event.Filter{Type: countersign.EnrollRefused})
	if len(e) != 2 || e[0].Actor != "unknown" || e[0].Device != "pump-1" {
		t.Errorf("got %+v, want two refusals of nobody known, on the device's page", e)
	}
}

func TestTokenSecretIsNowhereInTheDatabase(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		good, bad := w.token(t, registry.Credential{UsesMax: 3}), countersign.TokenPrefix+"never-made"
		for _, secret := range []string{good, good, bad} {
			_, _ = w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", secret)) // granted, refused, refused
		}
		if n := len(w.events(t, event.Filter{})); n < 4 {
			t.Fatalf("got %d events, want those of a grant and two refusals", n)
		}
		for _, table := range []string{"authority", "profile", "fleet", "device", "certificate", "crl", "credential", "operator_token", "event"} {
			rows, err := w.DB.Query(t.Context(), `SELECT * FROM `+table)
			if err != nil {
				t.Fatal(err)
			}
			columns, err := rows.Columns()
			if err != nil {
				t.Fatal(err)
			}
			values, into := make([]any, len(columns)), make([]any, len(columns))
			for i := range values {
				into[i] = &values[i]
			}
			for rows.Next() {
				if err := rows.Scan(into...); err != nil {
					t.Fatal(err)
				}
				for i, v := range values {
					text := fmt.Sprintf("%s", v)
					for _, secret := range []string{good, bad} {
						if strings.Contains(text, strings.TrimPrefix(secret, countersign.TokenPrefix)) {
							t.Errorf("%s.%s holds a token's secret", table, columns[i])
						}
					}
				}
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
			if err := rows.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
