package ra_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestTheRoleFactoryActsForNewDevicesOnly tries each thing that the role may make on a
// device in each state of its life.
func TestTheRoleFactoryActsForNewDevicesOnly(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{})
		provisioner := w.provisioner()
		provisioner.Operators, provisioner.Tokens = &operator.Accounts{DB: w.DB, Now: w.Now}, &access.Tokens{DB: w.DB, Now: w.Now, Key: make([]byte, 32)}
		made, _, err := provisioner.CreateOperatorToken(t.Context(), operator.Token{Name: "line", Role: operator.Factory}, 48*time.Hour, boss)
		if err != nil {
			t.Fatal(err)
		}
		line := ra.By{Actor: "operator:line", Via: "rest", Factory: &ra.Factory{Token: made.ID, Until: made.ExpiresAt}}
		n := 0
		doors := map[string]func(id string) error{
			"token": func(id string) error {
				_, _, err := provisioner.CreateToken(t.Context(), registry.Credential{Device: id, UsesMax: 1}, time.Hour, line)
				return err
			},
			"tokens in bulk": func(id string) error {
				_, err := provisioner.CreateTokens(t.Context(), registry.Credential{UsesMax: 1}, []string{id}, time.Hour, line)
				return err
			},
			"key": func(id string) error {
				_, _, err := provisioner.CreateKey(t.Context(), registry.Credential{Device: id}, provision.SymmetricKeys{}, line)
				return err
			},
			"thumbprint": func(id string) error {
				_, err := provisioner.CreateThumbprint(t.Context(), registry.Credential{Device: id}, thumb(selfSigned(t, w.Now(), w.Now().Add(time.Hour))), "", line)
				return err
			},
			"TPM": func(id string) error {
				n++
				_, err := provisioner.CreateTPM(t.Context(), registry.Credential{Device: id}, nil, fmt.Sprintf("%064x", n), line)
				return err
			},
			"certificate": func(id string) error {
				return asks(w.Enroll, shows(t, kit.Key(t), id, countersign.Evidence{Voucher: &countersign.Voucher{Actor: line.Actor, Item: fmt.Sprint(id, n)}}))
			},
		}
		states := map[string]struct {
			bring func(id string)
			may   bool
		}{
			"unknown": {func(string) {}, true},
			"registered": {func(id string) {
				if _, err := provisioner.CreateDevice(t.Context(), countersign.Device{ID: id}, boss); err != nil {
					t.Fatal(err)
				}
			}, true},
			"active": {func(id string) { w.active(t, id) }, false},
			"suspended": {func(id string) {
				w.active(t, id)
				if _, err := w.Suspend(t.Context(), ra.Act{Device: id, Actor: boss.Actor}); err != nil {
					t.Fatal(err)
				}
			}, false},
			"revoked": {func(id string) {
				w.active(t, id)
				if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: id, Reason: countersign.KeyCompromise, Actor: boss.Actor}); err != nil {
					t.Fatal(err)
				}
			}, false},
			"retired": {func(id string) {
				w.active(t, id)
				if _, err := w.Retire(t.Context(), ra.Act{Device: id, Actor: boss.Actor}); err != nil {
					t.Fatal(err)
				}
			}, false},
		}
		i := 0
		for door, act := range doors {
			for state, tt := range states {
				i++
				id := fmt.Sprint("dev-", i)
				tt.bring(id)
				if err := act(id); (err == nil) != tt.may {
					t.Errorf("%s for a device that is %s: got %v, want allowed %t", door, state, err, tt.may)
				}
			}
		}
		for what, order := range map[string]struct {
			uses int
			ttl  time.Duration
		}{"uses": {provision.FactoryUses + 1, time.Hour}, "ttl": {1, provision.FactoryTTL + time.Hour}} {
			_, _, err := provisioner.CreateToken(t.Context(), registry.Credential{UsesMax: order.uses}, order.ttl, line)
			kit.WantCode(t, err, countersign.NotAllowed)
			_, err = provisioner.CreateClaim(t.Context(), registry.Credential{UsesMax: order.uses, ExpiresAt: w.Now().Add(order.ttl)}, nil, false, line)
			if countersign.CodeOf(err) != countersign.NotAllowed {
				t.Errorf("a claim, %s: got %v", what, err)
			}
		}
		token, secret, err := provisioner.CreateToken(t.Context(), registry.Credential{UsesMax: 100}, 7*24*time.Hour, line)
		if err != nil || !token.ExpiresAt.Equal(made.ExpiresAt) {
			t.Fatalf("got a token until %s, %v, want the end of the operator token %s", token.ExpiresAt, err, made.ExpiresAt)
		}
		if _, err := provisioner.RevokeOperatorToken(t.Context(), made.ID, boss); err != nil {
			t.Fatal(err)
		}
		kit.WantCode(t, asks(w.Enroll, enrollment(t, kit.Key(t), "late-1", secret)), countersign.CredentialExpire)
		_, _, err = provisioner.CreateToken(t.Context(), registry.Credential{UsesMax: 1}, time.Hour, line)
		kit.WantCode(t, err, countersign.CredentialExpire)
	})
}

// TestAFactoryPicksOnlyProfilesThatTheFleetNames vouches with another profile.
func TestAFactoryPicksOnlyProfilesThatTheFleetNames(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		vouch := func(id, profile string) error {
			return asks(w.Enroll, shows(t, kit.Key(t), id, countersign.Evidence{Voucher: &countersign.Voucher{Actor: "operator:line", Item: id, Profile: profile}}))
		}
		w.rules(t, "default", countersign.Rules{})
		if err := vouch("pump-1", "device"); err != nil {
			t.Errorf("the fleet's own profile: %v", err)
		}
		kit.WantCode(t, vouch("pump-2", "idevid"), countersign.NotAllowed)
		w.rules(t, "default", countersign.Rules{FactoryProfiles: []string{"idevid"}})
		if err := vouch("pump-2", "idevid"); err != nil {
			t.Errorf("a profile that the fleet names: %v", err)
		}
	})
}
