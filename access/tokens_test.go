package access_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// tokenWorld has device pump-1, active in fleet pumps, and access tokens.
type tokenWorld struct {
	db     *store.DB
	now    time.Time
	tokens *access.Tokens
	desk   *access.Decider
}

func newTokenWorld(t *testing.T, db *store.DB) *tokenWorld {
	t.Helper()
	good().record(t, db, certificate(t, 0xa1))
	w := &tokenWorld{db: db, now: start}
	clock := func() time.Time { return w.now }
	w.desk = decider(t, db, clock)
	w.tokens = w.desk.Tokens
	w.exec(t, `DELETE FROM access_token`)
	w.exec(t, `UPDATE fleet SET rules = '{"access":{"kinds":["certificate","token"]}}', updated_at = updated_at + 1`)
	w.exec(t, `INSERT INTO device (id, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
		VALUES ('pump-2', 'pumps', 'active', '', '', '', 0, 0, 0, 0, ''), ('pump-3', 'pumps', 'registered', '', '', '', 0, 0, 0, 0, '')
		ON CONFLICT DO NOTHING`)
	return w
}

func (w *tokenWorld) exec(t *testing.T, query string) { t.Helper(); exec(t, w.db, query) }

func (w *tokenWorld) issue(t *testing.T, k access.Token, ttl time.Duration) (made access.Token, text string, err error) {
	t.Helper()
	werr := w.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		made, text, err = w.tokens.Issue(ctx, tx, k, ttl)
		return err
	})
	if werr != nil && err == nil {
		t.Fatal(werr)
	}
	return made, text, err
}

func (w *tokenWorld) decide(t *testing.T, text string) access.Decision {
	t.Helper()
	return w.desk.Decide(t.Context(), countersign.Connection{Gateway: "mqtt", Protocol: "MQTT 5", Username: "anything", Password: []byte(text)})
}

// alice returns an operator's token for devices of fleet pumps.
func alice(devices ...string) access.Token {
	return access.Token{Subject: "operator/alice", Source: "operator_token:1", Devices: devices}
}

func TestOperatorsTokenIsForItsDevices(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newTokenWorld(t, db)
		k, text, err := w.issue(t, alice("pump-3", "pump-1", "pump-1", "pump-2"), 15*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"pump-1", "pump-2", "pump-3"}, k.Devices); d != "" || k.Fleet != "pumps" {
			t.Errorf("got fleet %q, devices (-want +got):\n%s", k.Fleet, d)
		}
		dec := w.decide(t, text)
		if !dec.Allow || dec.Device != "operator/alice" || !dec.Ephemeral || !dec.NotAfter.Equal(start.Add(15*time.Minute)) || dec.Credential != "token:"+k.ID {
			t.Fatalf("got %+v", dec)
		}
		if d := cmp.Diff([]string{"pump-1", "pump-2"}, dec.Scope); d != "" { // pump-3 is not active
			t.Errorf("scope (-want +got):\n%s", d)
		}
		for _, f := range append(dec.Permissions.Publish.Allow, dec.Permissions.Receive.Allow...) {
			if strings.HasPrefix(f, "#") || strings.Contains(f, "pump-3") || strings.Contains(f, "/+/up") {
				t.Errorf("permission %q is wider than the scope", f)
			}
		}
		w.exec(t, `UPDATE device SET state = 'suspended'`)
		if dec := w.decide(t, text); dec.Code != countersign.NotAllowed {
			t.Errorf("all of its devices suspended: got %q, want not_allowed", dec.Code)
		}
	})
}

func TestReadOnlyTokenOnlyListens(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newTokenWorld(t, db)
		k := alice("pump-1")
		k.ReadOnly = true
		_, text, err := w.issue(t, k, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		dec := w.decide(t, text)
		if !dec.Allow || len(dec.Permissions.Receive.Allow) == 0 || len(dec.Permissions.Publish.Allow) != 0 || len(dec.Permissions.Retain.Allow) != 0 {
			t.Errorf("got %+v", dec.Permissions)
		}
	})
}

func TestDevicesTokenStandsForTheDevice(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newTokenWorld(t, db)
		k, text, err := w.issue(t, access.Token{Subject: "pump-1", Source: "certificate:issuing/a1", Fleet: "pumps"}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if dec := w.decide(t, text); !dec.Allow || dec.Device != "pump-1" || dec.Credential != k.Credential() || dec.Ephemeral {
			t.Errorf("got %+v", dec)
		}
		w.exec(t, `UPDATE fleet SET rules = '{}', updated_at = updated_at + 1`)
		if dec := w.decide(t, text); dec.Allow {
			t.Error("a fleet that accepts certificates alone took a token")
		}
		w.exec(t, `UPDATE fleet SET rules = '{"access":{"kinds":["token"]}}', updated_at = updated_at + 1`)
		w.exec(t, `UPDATE device SET state = 'suspended', reason = 'looks odd'`)
		if dec := w.decide(t, text); dec.Code != countersign.DeviceOnHold {
			t.Errorf("suspended: got %q", dec.Code)
		}
	})
}

func TestTokenEndsWithItsTimeAndAtOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newTokenWorld(t, db)
		k, text, err := w.issue(t, alice("pump-1"), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		_, other, err := w.issue(t, alice("pump-1"), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for name, wrong := range map[string]string{
			"altered": text[:len(text)-2] + "xx", "cut": text[:len(text)/2], "without signature": text[:strings.LastIndex(text, ".")+1],
			"none": "eyJhbGciOiJub25lIn0." + strings.Split(text, ".")[1] + ".", "endless": "eyJ" + strings.Repeat("a", 1<<17) + ".a.a",
		} {
			if _, err := w.tokens.Verify(t.Context(), wrong); countersign.CodeOf(err) != countersign.BadCredential {
				t.Errorf("%s: got %v, want bad_credential", name, err)
			}
		}
		foreign := &access.Tokens{DB: db, Now: w.tokens.Now, Key: []byte(strings.Repeat("x", 32))}
		if _, err := foreign.Verify(t.Context(), text); countersign.CodeOf(err) != countersign.BadCredential {
			t.Errorf("under another key: got %v", err)
		}
		w.now = start.Add(time.Minute)
		if _, err := w.tokens.Verify(t.Context(), text); countersign.CodeOf(err) != countersign.CredentialExpire {
			t.Errorf("when its time is over: got %v", err)
		}
		ended := func(ctx context.Context, tx *store.Tx) error {
			list, err := w.tokens.RevokeSource(ctx, tx, k.Source)
			if len(list) != 1 {
				t.Errorf("revoked %d, want the one that is still good", len(list))
			}
			return err
		}
		if err := db.Write(t.Context(), ended); err != nil {
			t.Fatal(err)
		}
		if dec := w.decide(t, other); dec.Code != countersign.CredentialExpire {
			t.Errorf("revoked with its source: got %q", dec.Code)
		}
		w.now = start.Add(48 * time.Hour)
		if err := w.tokens.Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.tokens.Get(t.Context(), db, k.ID); countersign.CodeOf(err) != countersign.NotFound {
			t.Errorf("two days later: got %v, want it forgotten", err)
		}
	})
}

func TestTokensAreBounded(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newTokenWorld(t, db)
		many := make([]string, 101)
		for i := range many {
			many[i] = "pump-1"
		}
		for _, tt := range []struct {
			name string
			k    access.Token
			ttl  time.Duration
			code countersign.Code
		}{
			{"too long", alice("pump-1"), 2 * time.Hour, countersign.BadRequest},
			{"too short", alice("pump-1"), time.Second, countersign.BadRequest},
			{"too many devices", alice(many...), time.Hour, countersign.BadRequest},
			{"no such device", alice("pump-9"), time.Hour, countersign.NotFound},
			{"another fleet", access.Token{Subject: "operator/a", Fleet: "valves", Devices: []string{"pump-1"}}, time.Hour, countersign.BadRequest},
		} {
			if _, _, err := w.issue(t, tt.k, tt.ttl); countersign.CodeOf(err) != tt.code {
				t.Errorf("%s: got %v, want %s", tt.name, err, tt.code)
			}
		}
		for i := range 101 {
			_, _, err := w.issue(t, alice("pump-1"), time.Hour)
			if want := i == 100; (countersign.CodeOf(err) == countersign.RateLimited) != want {
				t.Fatalf("token %d: got %v", i+1, err)
			}
		}
		list, next, err := w.tokens.List(t.Context(), "", 60)
		if err != nil || len(list) != 60 || next == "" {
			t.Fatalf("first page: %d, %q, %v", len(list), next, err)
		}
		if list, next, err = w.tokens.List(t.Context(), next, 60); err != nil || len(list) != 40 || next != "" {
			t.Errorf("second page: %d, %q, %v", len(list), next, err)
		}
	})
}

func FuzzToken(f *testing.F) {
	f.Add("eyJhbGciOiJIUzI1NiJ9.e30.x")
	f.Add("a.b.c")
	tokens := &access.Tokens{Now: func() time.Time { return start }, Key: []byte(strings.Repeat("k", 32))}
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := tokens.Verify(t.Context(), text); err == nil {
			t.Fatalf("%q is accepted as a token", text)
		}
	})
}
