package ra_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

// idDoors are all the ways in which a device id comes into being.
func idDoors(t *testing.T, w *world) map[string]func(id string) error {
	t.Helper()
	doors := map[string]func(id string) error{
		"device": func(id string) error {
			_, err := w.provisioner().CreateDevice(t.Context(), countersign.Device{ID: id}, boss)
			return err
		},
		"token": func(id string) error {
			_, _, err := w.provisioner().CreateToken(t.Context(), registry.Credential{Device: id, UsesMax: 1}, time.Hour, boss)
			return err
		},
		"tokens in bulk": func(id string) error {
			_, err := w.provisioner().CreateTokens(t.Context(), registry.Credential{UsesMax: 1}, []string{id}, time.Hour, boss)
			return err
		},
		"key": func(id string) error {
			_, _, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Device: id}, provision.SymmetricKeys{}, boss)
			return err
		},
		"thumbprint": func(id string) error {
			c := selfSigned(t, w.Now().Add(-time.Hour), w.Now().Add(time.Hour))
			_, err := w.provisioner().CreateThumbprint(t.Context(), registry.Credential{Device: id}, thumb(c), "", boss)
			return err
		},
		"TPM": func(id string) error {
			_, err := w.provisioner().CreateTPM(t.Context(), registry.Credential{Device: id}, nil, fmt.Sprintf("%064x", len(id)), boss)
			return err
		},
		"shared token": func(id string) error {
			_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), id, w.token(t, registry.Credential{})))
			return err
		},
	}
	for _, way := range ways(t, w) {
		switch way.method {
		case countersign.MethodFactory, countersign.MethodClaim, countersign.MethodIDevID, countersign.MethodGroup: // they need no registration
			doors[string(way.method)] = func(id string) error {
				_, err := w.Enroll(t.Context(), shows(t, kit.Key(t), id, way.make(t, w, id)))
				return err
			}
		}
		if way.method == countersign.MethodIDevID {
			doors["first connection"] = func(id string) error {
				v := w.Admit(t.Context(), countersign.Connection{Gateway: "test", Remote: remote, Peer: way.make(t, w, id).Peer})
				if v.Allow {
					return nil
				}
				return countersign.Errorf(v.Code, "%s", v.Reason)
			}
		}
	}
	w.change(t, "default", func(f *countersign.Fleet) { f.Rules.Connect = true })
	return doors
}

// TestNoDoorMakesAnIDThatBreaksSomething tries ids that paths, SPIFFE ids, argument
// lists, the server's own certificate or people who ignore case would take for
// something else.
func TestNoDoorMakesAnIDThatBreaksSomething(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.Registry.Reserved = func(id string) bool { return countersign.FoldDeviceID(id) == "mqtt.example.org" }
		doors := idDoors(t, w)
		w.enroll(t, "Pump-1")
		w.change(t, "default", func(f *countersign.Fleet) { f.TrustDomain = "example.org" })
		for name, create := range doors {
			w.Ledger = &lockout.Ledger{Now: w.clock.Now} // one door's refusals are not another's
			devices, credentials := w.count(t, "device"), w.count(t, "credential")
			for id, want := range map[string]countersign.Code{
				".": countersign.BadRequest, "..": countersign.BadRequest, "-x": countersign.BadRequest, "a/b": countersign.BadRequest,
				"AA:BB": countersign.BadRequest, "MQTT.example.org": countersign.BadRequest, "pump-1": countersign.Conflict, "PUMP-1": countersign.Conflict,
			} {
				err := create(id)
				got := countersign.CodeOf(err)
				if want == countersign.BadRequest && got == countersign.Misconfigured && (name == string(countersign.MethodIDevID) || name == "first connection") {
					continue // the certificate names no device
				}
				if got != want {
					t.Errorf("%s, id %q: got %v, want %s", name, id, err, want)
				}
			}
			if n := w.count(t, "device"); n != devices {
				t.Errorf("%s: %d devices were created", name, n-devices)
			}
			if n := w.count(t, "credential WHERE device <> ''"); n > credentials {
				t.Errorf("%s: a credential was bound to such an id", name)
			}
			if err := create("ok-" + strings.ReplaceAll(name, " ", "-")); err != nil {
				t.Errorf("%s: a good id: %v", name, err)
			}
		}
	})
}

// TestOldIDsStayWithinReach acts on devices of ids that are no longer given.
func TestOldIDsStayWithinReach(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for i, id := range []string{".", "..", "-x", "PUMP", "pump"} {
			first := fmt.Sprint("dev-", i)
			cert := w.active(t, first)
			_ = cert
			w.exec(t, `UPDATE certificate SET device = $1 WHERE device = $2`, id, first)
			w.exec(t, `UPDATE device SET id = $1 WHERE id = $2`, id, first)
			if _, err := w.Suspend(t.Context(), ra.Act{Device: id, Actor: boss.Actor}); err != nil {
				t.Errorf("suspend %q: %v", id, err)
			}
			if _, err := w.Reactivate(t.Context(), ra.Act{Device: id, Actor: boss.Actor}); err != nil {
				t.Errorf("reactivate %q: %v", id, err)
			}
			if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: id, Reason: countersign.KeyCompromise, Actor: boss.Actor}); err != nil {
				t.Errorf("revoke %q: %v", id, err)
			}
			w.clock.Advance(time.Second)
			g, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), id, w.token(t, registry.Credential{Device: id})))
			if err != nil || g.Device != id {
				t.Errorf("a token that lets %q back: got %v", id, err)
			}
			if _, err := w.Retire(t.Context(), ra.Act{Device: id, Actor: boss.Actor}); err != nil {
				t.Errorf("retire %q: %v", id, err)
			}
		}
	})
}

// TestAKeyOpensOneLetterCaseOnly has a fleet with a device whose id equals another's
// but for letter case, as old databases may.
func TestAKeyOpensOneLetterCaseOnly(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{Access: countersign.Access{Kinds: []countersign.AccessKind{countersign.AccessSAS}}})
		if _, err := w.provisioner().CreateDevice(t.Context(), countersign.Device{ID: "pump-x"}, boss); err != nil {
			t.Fatal(err)
		}
		w.exec(t, `UPDATE device SET id = 'pump-1', folded = NULL WHERE id = 'pump-x'`)
		if _, err := w.provisioner().CreateDevice(t.Context(), countersign.Device{ID: "Pump-1"}, boss); err != nil {
			t.Fatal(err)
		}
		_, k, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Device: "Pump-1"}, provision.SymmetricKeys{}, boss)
		if err != nil {
			t.Fatal(err)
		}
		for id, want := range map[string]bool{"Pump-1": true, "pump-1": false} {
			token := sasPassword(kit.Must(base64.StdEncoding.DecodeString(k.Primary)), "hub/devices/"+id, w.Now().Add(time.Hour))
			got := w.Access.Decide(t.Context(), countersign.Connection{Gateway: "mqtt", ClientID: id, Username: id, Password: token, Remote: remote})
			if got.Allow != want {
				t.Errorf("%s: got %+v, want in: %t", id, got.Verdict, want)
			}
		}
	})
}

// change edits a fleet.
func (w *world) change(t *testing.T, fleet string, edit func(*countersign.Fleet)) {
	t.Helper()
	if _, err := w.provisioner().SaveFleet(t.Context(), fleet, edit, boss); err != nil {
		t.Fatal(err)
	}
}

// exec changes the record behind the back of the code, as an old version left it.
func (w *world) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	write(t, w.DB, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
}
