package ra_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

// gives lets devices and operators have access tokens.
func (w *world) gives(t *testing.T) {
	t.Helper()
	w.opens(t)
	w.Access.Tokens = &access.Tokens{DB: w.DB, Now: w.clock.Now, Key: bytes.Repeat([]byte{7}, 32)}
}

func (w *world) deviceToken(t *testing.T, c countersign.Connection) (api.AccessToken, string) {
	t.Helper()
	made, err := w.AccessToken(t.Context(), c, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return made.AccessToken, made.Token
}

// withCertificate is a device that asks with its certificate.
func withCertificate(cert *x509.Certificate) countersign.Connection {
	return countersign.Connection{Gateway: "rest", Protocol: "HTTPS", Peer: []*x509.Certificate{cert}}
}

func tokenBearer(text string) countersign.Connection {
	c := by("", []byte(text), "192.0.2.1")
	c.Protocol = "MQTT 5 over WebSocket"
	return c
}

// TestTokenEndsWithWhatItWasGivenFor: who stole a key gets nothing from it that
// outlives its revocation.
func TestTokenEndsWithWhatItWasGivenFor(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.gives(t)
		cert := w.active(t, "pump-1")
		k, text := w.deviceToken(t, withCertificate(cert))
		if v := w.Admit(t.Context(), tokenBearer(text)); !v.Allow || v.Device != "pump-1" {
			t.Fatalf("got %+v", v)
		}
		w.takeCuts()
		_, err := w.Revoke(t.Context(), countersign.RevokeRequest{Cert: w.refOf(t, cert), Reason: countersign.KeyCompromise})
		if err != nil {
			t.Fatal(err)
		}
		if v := w.Admit(t.Context(), tokenBearer(text)); v.Allow {
			t.Error("the token of a revoked certificate is let in")
		}
		if cuts := w.takeCuts(); len(cuts) != 2 || cuts[1].Credential != "token:"+k.ID {
			t.Errorf("cuts: got %+v, want the certificate's and the token's", cuts)
		}
		if got := w.events(t, event.Filter{Type: countersign.AccessTokenRevoked}); len(got) != 1 || got[0].Data["token"] != k.ID {
			t.Errorf("events: got %+v", got)
		}

		w.registered(t, "pump-2")
		s, secret := w.secret(t, access.SecretOrder{Device: "pump-2"})
		k, text = w.deviceToken(t, by("pump-2", secret, "192.0.2.1"))
		w.takeCuts()
		if _, _, err := w.StopSecret(t.Context(), "pump-2", s.ID, "in a repository", boss); err != nil {
			t.Fatal(err)
		}
		if v := w.Admit(t.Context(), tokenBearer(text)); v.Allow {
			t.Error("the token of a stopped secret is let in")
		}
		if cuts := w.takeCuts(); len(cuts) != 2 || cuts[1].Credential != "token:"+k.ID {
			t.Errorf("cuts: got %+v, want the secret's and the token's", cuts)
		}
	})
}

// TestFormerLifeOpensNothing brings a revoked device back with a new identity, and
// tries what it had before.
func TestFormerLifeOpensNothing(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.gives(t)
		_, keys, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Kind: countersign.MethodKey, Device: "pump-1"}, provision.SymmetricKeys{}, boss)
		if err != nil {
			t.Fatal(err)
		}
		key, err := attest.ParseSymmetricKey(keys.Primary)
		if err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		cert := w.active(t, "pump-1")
		sas := by("pump-1", hubToken(key, "pump-1", w.clock.Now().Add(time.Hour)), "192.0.2.1")
		if v := w.Admit(t.Context(), sas); !v.Allow {
			t.Fatalf("before: got %+v", v)
		}
		_, text := w.deviceToken(t, withCertificate(cert))
		if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-1", Reason: countersign.KeyCompromise}); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		w.use(t, w.reenrolled(t, "pump-1"))
		if v := w.Admit(t.Context(), tokenBearer(text)); v.Allow {
			t.Error("a token of the former life is let in")
		}
		if v := w.Admit(t.Context(), sas); v.Code != countersign.NotAllowed {
			t.Errorf("the symmetric key of the former life: got %+v, want not_allowed", v)
		}
		if v := w.Admit(t.Context(), countersign.Connection{Gateway: "hook", Vouched: "broker", Username: "pump-1"}); !v.Allow {
			t.Errorf("the word of a broker: got %+v", v)
		}
	})
}

// TestNothingIsGivenForWhatEndsMeanwhile has the secret stopped, or the operator
// token revoked, between the check and the gift.
func TestNothingIsGivenForWhatEndsMeanwhile(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.gives(t)
		w.registered(t, "pump-1")
		s, secret := w.secret(t, access.SecretOrder{Device: "pump-1"})
		cert := w.active(t, "pump-2")
		w.Observe = func(o ra.Outcome) {
			if o.Act != "connect" {
				return
			}
			if _, _, err := w.StopSecret(t.Context(), "pump-1", s.ID, "", boss); err != nil {
				t.Error(err)
			}
		}
		_, err := w.ChangeSecret(t.Context(), by("pump-1", secret, "192.0.2.1"), api.ChangeSecret{})
		kit.WantCode(t, err, countersign.CredentialExpire)
		w.Observe = func(o ra.Outcome) {
			if o.Act != "connect" {
				return
			}
			if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Cert: w.refOf(t, cert), Reason: countersign.KeyCompromise}); err != nil {
				t.Error(err)
			}
		}
		_, err = w.AccessToken(t.Context(), withCertificate(cert), time.Hour)
		kit.WantCode(t, err, countersign.CertIsRevoked)
		w.Observe = nil

		provisioner := w.provisioner()
		provisioner.Tokens = w.Access.Tokens
		provisioner.Operators = &operator.Accounts{DB: w.DB, Now: w.clock.Now}
		op, _, err := provisioner.CreateOperatorToken(t.Context(), operator.Token{Name: "alice", Role: operator.Admin}, time.Hour, boss)
		if err != nil {
			t.Fatal(err)
		}
		want := access.Token{Subject: "operator/alice", Source: provision.OperatorSource(op.ID), Devices: []string{"pump-2"}}
		if _, _, err := provisioner.CreateAccessToken(t.Context(), want, time.Hour, boss); err != nil {
			t.Fatal(err)
		}
		if _, err := provisioner.RevokeOperatorToken(t.Context(), op.ID, boss); err != nil {
			t.Fatal(err)
		}
		_, _, err = provisioner.CreateAccessToken(t.Context(), want, time.Hour, boss)
		kit.WantCode(t, err, countersign.BadCredential)
	})
}

// TestDeviceLearnsNothingOfOtherFleets asks to be introduced to devices of another
// fleet, with an identity and without, and to one that there is not.
func TestDeviceLearnsNothingOfOtherFleets(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		cert := w.active(t, "pump-1")
		w.active(t, "valve-1")
		w.registered(t, "valve-2")
		if _, err := w.provisioner().SaveFleet(t.Context(), "valves", func(*countersign.Fleet) {}, boss); err != nil {
			t.Fatal(err)
		}
		write(t, w.DB, func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE device SET fleet = 'valves' WHERE id LIKE 'valve-%'`)
			return err
		})
		_, err := w.Introduce(t.Context(), withCertificate(cert), api.NewIntroduction{Peer: "valve-1", Purpose: "\x1b[2Jmodbus"})
		kit.WantCode(t, err, countersign.BadRequest)
		for _, peer := range []string{"valve-1", "valve-2", "valve-3"} {
			_, err := w.Introduce(t.Context(), withCertificate(cert), api.NewIntroduction{Peer: peer, Purpose: "modbus"})
			if want := "there is no device \"" + peer + "\" in fleet default"; err == nil || countersign.Public(err).Message != want {
				t.Errorf("%s: got %v, want: %s", peer, err, want)
			}
		}
	})
}

// TestOperatorsSessionIsTheOperators wants what an operator's session is refused and
// does recorded as the operator's, and not as that of a device of such a name.
func TestOperatorsSessionIsTheOperators(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.gives(t)
		w.use(t, w.active(t, "pump-1"))
		provisioner := w.provisioner()
		provisioner.Tokens = w.Access.Tokens
		_, text, err := provisioner.CreateAccessToken(t.Context(), access.Token{Subject: "operator/local:ana", Source: "local:ana", Devices: []string{"pump-1"}}, time.Hour, boss)
		if err != nil {
			t.Fatal(err)
		}
		if v := w.Admit(t.Context(), tokenBearer(text)); !v.Allow || v.Device != "operator/local:ana" {
			t.Fatalf("got %+v", v)
		}
		if _, err := w.Suspend(t.Context(), ra.Act{Device: "pump-1", Actor: boss.Actor}); err != nil {
			t.Fatal(err)
		}
		if v := w.Admit(t.Context(), tokenBearer(text)); v.Allow {
			t.Fatal("a token for a suspended device alone is let in")
		}
		if err := w.Events.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		list := w.events(t, event.Filter{Type: countersign.ConnectRefused})
		if len(list) != 1 || list[0].Actor != "operator:local:ana" {
			t.Errorf("got %+v, want the operator to be refused", list)
		}
		s := countersign.Session{Device: "operator/local:ana"}
		if got := s.Actor(); got != "operator:local:ana" {
			t.Errorf("the session is %s's", got)
		}
	})
}
