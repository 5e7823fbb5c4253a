package ra_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestWhatIsMadeForADeviceIsOfItsFleet leaves the fleet out where a device is named, at
// each door that makes a credential for one.
func TestWhatIsMadeForADeviceIsOfItsFleet(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "other", countersign.Rules{})
		provisioner := w.provisioner()
		for name, create := range map[string]func(c registry.Credential) (registry.Credential, error){
			"token": func(c registry.Credential) (registry.Credential, error) {
				c.UsesMax = 1
				made, _, err := provisioner.CreateToken(t.Context(), c, time.Hour, boss)
				return made, err
			},
			"key": func(c registry.Credential) (registry.Credential, error) {
				made, _, err := provisioner.CreateKey(t.Context(), c, provision.SymmetricKeys{}, boss)
				return made, err
			},
			"thumbprint": func(c registry.Credential) (registry.Credential, error) {
				return provisioner.CreateThumbprint(t.Context(), c, thumb(selfSigned(t, w.Now(), w.Now().Add(time.Hour))), "", boss)
			},
			"TPM": func(c registry.Credential) (registry.Credential, error) {
				return provisioner.CreateTPM(t.Context(), c, nil, fmt.Sprintf("%064x", len(c.Device)), boss)
			},
		} {
			id := "pump-" + name
			if _, err := provisioner.CreateDevice(t.Context(), countersign.Device{ID: id, Fleet: "other"}, boss); err != nil {
				t.Fatal(err)
			}
			if made, err := create(registry.Credential{Device: id}); err != nil || made.Fleet != "other" {
				t.Errorf("a %s for %s, which is in fleet other: got one of fleet %q, %v", name, id, made.Fleet, err)
			}
			if made, err := create(registry.Credential{Device: "unknown-" + name}); err != nil || made.Fleet != countersign.DefaultFleet {
				t.Errorf("a %s for a device that is not on record: got one of fleet %q, %v", name, made.Fleet, err)
			}
		}
	})
}

// TestAnExpiredDeviceLearnsOfTheRecoveryListener renews with an expired certificate at the
// door that does not take it: where the fleet recovers devices, the refusal says where.
func TestAnExpiredDeviceLearnsOfTheRecoveryListener(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		cert := w.active(t, "pump-1")
		w.clock.Set(cert.NotAfter.Add(time.Hour))
		for _, recovers := range []bool{true, false} {
			rules := countersign.Rules{}
			if recovers {
				rules.Recovery = &countersign.Recovery{MaxAge: countersign.Span(24 * time.Hour), MaxTimes: 1}
			}
			w.rules(t, "default", rules)
			_, err := w.Reenroll(t.Context(), renewal(t, cert, kit.Key(t)))
			kit.WantCode(t, err, countersign.CertExpired)
			if next := countersign.Public(err).Next; strings.Contains(next, "recovery listener") != recovers || next == "" {
				t.Errorf("a fleet that recovers devices (%t) says: %q", recovers, next)
			}
		}
	})
}
