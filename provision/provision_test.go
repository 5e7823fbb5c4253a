package provision_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

var boss = ra.By{Actor: "operator:boss", Via: "test"}

// world is a provisioner with an authority, a clock and the fleets default and other.
type world struct {
	*provision.Provisioner
	clock *kit.Clock
}

func newWorld(t *testing.T, db *store.DB) *world {
	t.Helper()
	log, clock := slog.New(slog.DiscardHandler), kit.NewClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	keys := &keystore.Store{Dir: t.TempDir()}
	authority := kit.Must(ca.Open(t.Context(), ca.Options{DB: db, Keys: keys, Now: clock.Now, Log: log, StatusURL: "http://status.example.net"}))
	founding := kit.Must(authority.Found(t.Context(), ca.Plan{Name: "Test"}))
	reg := &registry.Registry{DB: db, Now: clock.Now}
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return authority.RecordFounding(ctx, tx, founding) })
	if err == nil {
		err = authority.Reload(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &world{clock: clock, Provisioner: &provision.Provisioner{
		DB: db, CA: authority, Registry: reg, Operators: &operator.Accounts{DB: db, Now: clock.Now},
		Events: &event.Log{DB: db, Now: clock.Now, Log: log, Node: "test"}, Sealer: kit.Must(keys.MakeSealer("file:seal.key")),
		Tokens: &access.Tokens{DB: db, Now: clock.Now, Key: make([]byte, 32)},
	}}
	for _, name := range []string{"default", "other"} {
		if _, err := w.SaveFleet(t.Context(), name, func(*countersign.Fleet) {}, boss); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func each(t *testing.T, run func(t *testing.T, w *world)) {
	t.Helper()
	storetest.Each(t, func(t *testing.T, db *store.DB) { run(t, newWorld(t, db)) })
}

// newest returns the newest event on record.
func (w *world) newest(t *testing.T) countersign.Event {
	t.Helper()
	list, _, err := w.Events.List(t.Context(), event.Filter{Newest: true, Limit: 1})
	if err != nil || len(list) != 1 {
		t.Fatalf("read the newest event: got %v, %v", list, err)
	}
	return list[0]
}

func (w *world) count(t *testing.T, table string) int {
	t.Helper()
	return kit.Must(store.Count(t.Context(), w.DB, `SELECT count(*) FROM `+table))
}

// TestEachActHasItsEvent holds one event, by the operator who acts, against each act.
func TestEachActHasItsEvent(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		var stopped registry.Credential
		var token operator.Token
		for _, act := range []struct {
			want countersign.EventType
			do   func(ctx context.Context) error
		}{
			{countersign.DeviceCreated, func(ctx context.Context) error {
				_, err := w.CreateDevice(ctx, countersign.Device{ID: "pump-1"}, boss)
				return err
			}},
			{countersign.TokenCreated, func(ctx context.Context) (err error) {
				stopped, _, err = w.CreateToken(ctx, registry.Credential{Device: "pump-1", UsesMax: 1}, time.Hour, boss)
				return err
			}},
			{countersign.CredentialStopped, func(ctx context.Context) error {
				_, _, err := w.StopCredential(ctx, stopped.ID, "lost", boss)
				return err
			}},
			{countersign.CredentialStopped, func(ctx context.Context) error { // again: sessions are cut again
				_, done, err := w.StopCredential(ctx, stopped.ID, "lost", boss)
				if !done.Already {
					t.Error("stopped twice: the second time is not known as such")
				}
				return err
			}},
			{countersign.CredentialCreated, func(ctx context.Context) error {
				_, keys, err := w.CreateKey(ctx, registry.Credential{Device: "pump-1"}, provision.SymmetricKeys{}, boss)
				if keys.Primary == "" || keys.Primary == keys.Secondary {
					t.Error("no two keys were drawn")
				}
				return err
			}},
			{countersign.CredentialCreated, func(ctx context.Context) error {
				_, err := w.CreateThumbprint(ctx, registry.Credential{Device: "pump-1"}, strings.Repeat("a", 64), "", boss)
				return err
			}},
			{countersign.CredentialCreated, func(ctx context.Context) error {
				_, err := w.CreateTPM(ctx, registry.Credential{Device: "pump-1"}, nil, strings.Repeat("b", 64), boss)
				return err
			}},
			{countersign.CredentialCreated, func(ctx context.Context) error {
				c, err := w.CreateClaim(ctx, registry.Credential{}, nil, true, boss)
				if err == nil && (c.UsesMax != 1 || c.ExpiresAt.Sub(w.clock.Now()) > provision.TemporaryClaim || c.Key == "") {
					t.Errorf("temporary claim: got %+v", c.Credential)
				}
				return err
			}},
			{countersign.ProfileSaved, func(ctx context.Context) error {
				p, err := ca.ReadProfile(ctx, w.DB, ca.ProfileDevice)
				if err != nil {
					return err
				}
				p.Name = "another"
				return w.SaveProfile(ctx, p, boss)
			}},
			{countersign.OperatorTokenAdded, func(ctx context.Context) (err error) {
				token, _, err = w.CreateOperatorToken(ctx, operator.Token{Name: "ann", Role: operator.Viewer}, time.Hour, boss)
				return err
			}},
			{countersign.OperatorTokenRevoked, func(ctx context.Context) error {
				_, err := w.RevokeOperatorToken(ctx, token.ID, boss)
				return err
			}},
		} {
			before := w.count(t, "event")
			if err := act.do(t.Context()); err != nil {
				t.Errorf("%s: %v", act.want, err)
				continue
			}
			if e := w.newest(t); e.Type != act.want || e.Actor != boss.Actor || e.Via != boss.Via || w.count(t, "event") != before+1 {
				t.Errorf("got %s by %s via %s, %d events more; want one %s by %s", e.Type, e.Actor, e.Via, w.count(t, "event")-before, act.want, boss.Actor)
			}
		}
	})
}

// TestTokensAreMadeForAllOrNone has one id that cannot be a device's among others.
func TestTokensAreMadeForAllOrNone(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		before := w.count(t, "event")
		_, err := w.CreateTokens(t.Context(), registry.Credential{UsesMax: 1}, []string{"pump-1", "no device", "pump-2"}, time.Hour, boss)
		kit.WantCode(t, err, countersign.BadRequest)
		if n, m := w.count(t, "credential"), w.count(t, "event")-before; n != 0 || m != 0 {
			t.Errorf("refused: %d tokens and %d events are left", n, m)
		}
		secrets, err := w.CreateTokens(t.Context(), registry.Credential{UsesMax: 1}, []string{"pump-1", "pump-2"}, time.Hour, boss)
		if err != nil || len(secrets) != 2 || w.count(t, "credential") != 2 {
			t.Errorf("got %d tokens, %v, want one for each device", len(secrets), err)
		}
	})
}

// TestFactoryIsBounded holds what the role factory makes to its bounds, to new devices
// and to the life of the operator token that makes it (ADR 19).
func TestFactoryIsBounded(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		op, _, err := w.CreateOperatorToken(t.Context(), operator.Token{Name: "line", Role: operator.Factory}, 2*time.Hour, boss)
		if err != nil {
			t.Fatal(err)
		}
		line := ra.By{Actor: "operator:line", Via: "test", Factory: &ra.Factory{Token: op.ID, Until: op.ExpiresAt}}
		if _, err := w.CreateDevice(t.Context(), countersign.Device{ID: "pump-1"}, boss); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			token registry.Credential
			ttl   time.Duration
			code  countersign.Code
		}{
			"a new device":  {registry.Credential{Device: "pump-1", UsesMax: 1}, time.Hour, ""},
			"too many uses": {registry.Credential{UsesMax: provision.FactoryUses + 1}, time.Hour, countersign.NotAllowed},
			"too long":      {registry.Credential{UsesMax: 1}, provision.FactoryTTL + time.Second, countersign.NotAllowed},
		} {
			made, _, err := w.CreateToken(t.Context(), c.token, c.ttl, line)
			if countersign.CodeOf(err) != c.code {
				t.Errorf("%s: got %v, want %q", name, err, c.code)
			}
			if err == nil && made.ExpiresAt.After(op.ExpiresAt) {
				t.Errorf("%s: the token outlives the one that made it", name)
			}
		}
		made, _, err := w.CreateToken(t.Context(), registry.Credential{UsesMax: 1}, 24*time.Hour, line)
		if err != nil || !made.ExpiresAt.Equal(op.ExpiresAt) {
			t.Errorf("for a day: got the end %v, %v, want that of the operator token %v", made.ExpiresAt, err, op.ExpiresAt)
		}
		if _, err := w.RevokeOperatorToken(t.Context(), op.ID, boss); err != nil {
			t.Fatal(err)
		}
		if c, err := w.Registry.Credential(t.Context(), w.DB, made.ID); err != nil || c.State != registry.CredentialStopped {
			t.Errorf("after the operator token was revoked: got %s, %v, want it stopped", c.State, err)
		}
		_, _, err = w.CreateToken(t.Context(), registry.Credential{UsesMax: 1}, time.Hour, line)
		kit.WantCode(t, err, countersign.CredentialExpire)
	})
}

// TestADryChangeOfAFleetChangesNothing returns the fleet as it would be; the real change
// names the rules that differ.
func TestADryChangeOfAFleetChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		order := provision.FleetOrder{Name: "default", Known: true, Dry: true, Change: func(f *countersign.Fleet) error {
			f.Rules.Connect, f.Rules.TPMID = true, true
			return nil
		}}
		before := w.count(t, "event")
		f, err := w.ChangeFleet(t.Context(), order, boss)
		now := kit.Must(w.Registry.Fleet(t.Context(), w.DB, "default"))
		if err != nil || !f.Rules.Connect || now.Rules.Connect || w.count(t, "event") != before {
			t.Errorf("tried: got %+v, %v; on record %+v, %d events more", f.Rules, err, now.Rules, w.count(t, "event")-before)
		}
		order.Dry = false
		if _, err = w.ChangeFleet(t.Context(), order, boss); err != nil || w.newest(t).Data["rules"] != "connect,tpm_id" {
			t.Errorf("done: got %v and the event %+v, want the names of two rules", err, w.newest(t))
		}
		order.Name = "nothing"
		_, err = w.ChangeFleet(t.Context(), order, boss)
		kit.WantCode(t, err, countersign.NotFound)
		order.Name, order.Change = "default", func(f *countersign.Fleet) error { f.Rules.Authorities = []string{"unknown"}; return nil }
		_, err = w.ChangeFleet(t.Context(), order, boss)
		kit.WantCode(t, err, countersign.BadRequest)
	})
}

// TestAMovedDeviceIsDisconnected ends the sessions that the rules of the former fleet let in.
func TestAMovedDeviceIsDisconnected(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		if _, err := w.CreateDevice(t.Context(), countersign.Device{ID: "pump-1"}, boss); err != nil {
			t.Fatal(err)
		}
		owner, fleet := "ann", "other"
		if _, _, _, err := w.EditDevice(t.Context(), "pump-1", registry.Change{Owner: &owner}, boss); err != nil || w.newest(t).Type != countersign.DeviceChanged {
			t.Errorf("another owner: got %v and %s, want device.changed alone", err, w.newest(t).Type)
		}
		before := w.count(t, "event")
		if _, changed, _, err := w.EditDevice(t.Context(), "pump-1", registry.Change{Owner: &owner}, boss); err != nil || len(changed) != 0 || w.count(t, "event") != before {
			t.Errorf("the same owner: got %v, %v and %d events, want nothing", changed, err, w.count(t, "event")-before)
		}
		_, changed, _, err := w.EditDevice(t.Context(), "pump-1", registry.Change{Fleet: &fleet}, boss)
		if e := w.newest(t); err != nil || changed["fleet_before"] != "default" || e.Type != countersign.SessionEnded || e.Fleet != "default" {
			t.Errorf("another fleet: got %v, %v and %+v, want its sessions of fleet default ended", changed, err, e)
		}
	})
}

// TestWithoutAMessageStoreNothingIsPurged says which node to ask.
func TestWithoutAMessageStoreNothingIsPurged(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	_, err := w.Purge(t.Context(), ra.Act{Device: "pump-1", Actor: boss.Actor}, countersign.Stored{Retained: true})
	kit.WantCode(t, err, countersign.Conflict)
	_, err = w.Usage(t.Context(), countersign.UsageFilter{})
	kit.WantCode(t, err, countersign.Conflict)
}

// TestKeysNameWhatTheyAreFor refuses keys and thumbprints that would be of any device.
func TestKeysNameWhatTheyAreFor(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	for name, do := range map[string]func(ctx context.Context) error{
		"a key without a device": func(ctx context.Context) error {
			_, _, err := w.CreateKey(ctx, registry.Credential{}, provision.SymmetricKeys{}, boss)
			return err
		},
		"a group without a label": func(ctx context.Context) error {
			_, _, err := w.CreateKey(ctx, registry.Credential{Kind: countersign.MethodGroup}, provision.SymmetricKeys{}, boss)
			return err
		},
		"a thumbprint without a device": func(ctx context.Context) error {
			_, err := w.CreateThumbprint(ctx, registry.Credential{}, strings.Repeat("a", 2*len(attest.Thumbprint{})), "", boss)
			return err
		},
		"a claim without uses": func(ctx context.Context) error {
			_, err := w.CreateClaim(ctx, registry.Credential{ExpiresAt: w.clock.Now().Add(time.Hour)}, nil, false, boss)
			return err
		},
		"an endorsement key that is none": func(ctx context.Context) error {
			_, err := w.CreateTPM(ctx, registry.Credential{Device: "pump-1"}, nil, "xyz", boss)
			return err
		},
	} {
		if err := do(t.Context()); countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("%s: got %v, want bad_request", name, err)
		}
	}
	if n := w.count(t, "credential"); n != 0 {
		t.Errorf("%d credentials were made, want none", n)
	}
}
