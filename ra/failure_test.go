package ra_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// full fills the database until it takes no more, and gives what makes room again.
func full(t *testing.T, db *store.DB) (free func()) {
	t.Helper()
	filler := strings.Repeat("x", 64<<10)
	for i := 0; ; i++ {
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO profile (name, spec, created_at, updated_at) VALUES ($1, $2, 0, 0)`, fmt.Sprintf("filler-%d-%d", len(filler), i), filler)
			return err
		})
		if err != nil {
			kit.WantCode(t, err, countersign.Unavailable)
			if len(filler) < 16 { // not a row fits any more
				break
			}
			filler = filler[:len(filler)/4]
		}
	}
	return func() {
		t.Helper()
		write(t, db, func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM profile WHERE name LIKE 'filler-%'`)
			return err
		})
	}
}

func TestFullDiskRecordsNothingAndSaysSo(t *testing.T) {
	db, err := store.Open(t.Context(), store.Options{URL: storetest.SQLiteURL(t), Now: time.Now, MaxBytes: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	w := newWorld(t, db)
	old := w.active(t, "pump-0") // draws a block of serials too
	if _, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-9", w.token(t, registry.Credential{}))); err != nil {
		t.Fatal(err)
	}
	secret := w.token(t, registry.Credential{})
	certs, events := w.count(t, "certificate"), w.count(t, "event")
	free := full(t, db)

	req := enrollment(t, kit.Key(t), "pump-1", secret)
	_, err = w.Enroll(t.Context(), req)
	kit.WantCode(t, err, countersign.Unavailable)
	if countersign.Public(err).RetryAfter == 0 {
		t.Error("got no time to come back at")
	}
	_, err = w.Reenroll(t.Context(), renewal(t, old, kit.Key(t)))
	kit.WantCode(t, err, countersign.Unavailable)
	if n := w.count(t, "certificate") + w.count(t, "device WHERE id = 'pump-1'"); n != certs {
		t.Errorf("got %d certificates and devices, want %d: something was half written", n, certs)
	}
	if n := w.count(t, "event"); n < events {
		t.Errorf("got %d events of %d", n, events)
	}
	free()
	if _, err := w.Enroll(t.Context(), req); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func TestPostgresThatCannotWriteIsUnavailable(t *testing.T) {
	url := storetest.PostgresURL(t)
	w := newWorld(t, storetest.OpenURL(t, url))
	other := storetest.OpenURL(t, url+"&default_transaction_read_only=off") // an administrator's
	w.active(t, "pump-0")                                                   // draws a block of serials
	var name string
	if err := w.DB.QueryRow(t.Context(), `SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	endConnections := func() {
		var n int // fails as it ends its own connection too, perhaps before others
		_ = w.DB.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()`).Scan(&n)
	}
	// As at a failover: connections end, and the new ones meet a read-only server.
	readOnly := func(state string) {
		t.Helper()
		write(t, other, func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `ALTER DATABASE `+name+` SET default_transaction_read_only = `+state)
			return err
		})
		endConnections()
	}
	req := enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{}))
	readOnly("on")
	var err error
	for range 50 { // until no connection of before is left
		if _, err = w.Suspend(t.Context(), ra.Act{Device: "pump-0"}); err != nil {
			break
		}
		if _, err = w.Reactivate(t.Context(), ra.Act{Device: "pump-0"}); err != nil {
			break
		}
		endConnections()
	}
	kit.WantCode(t, err, countersign.Unavailable)
	_, err = w.Enroll(t.Context(), req)
	kit.WantCode(t, err, countersign.Unavailable)
	if countersign.Public(err).RetryAfter == 0 {
		t.Error("got no time to come back at")
	}
	if n := w.count(t, "certificate WHERE device = 'pump-1'") + w.count(t, "device WHERE id = 'pump-1'"); n != 0 {
		t.Errorf("got %d rows of what was refused", n)
	}
	readOnly("off")
	for range 50 {
		if _, err = w.Enroll(t.Context(), req); err == nil {
			break
		}
		kit.WantCode(t, err, countersign.Unavailable)
		endConnections()
	}
	if err != nil {
		t.Errorf("with a server that writes again: %v", err)
	}
}

func TestClosedDatabaseIsUnavailable(t *testing.T) {
	db, err := store.Open(t.Context(), store.Options{URL: storetest.SQLiteURL(t), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, db)
	cert := w.active(t, "pump-1")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if v := w.connect(t, cert); v.Allow || v.Code != countersign.Unavailable {
		t.Errorf("connect: got %+v, want a refusal as unavailable", v)
	}
	for name, act := range map[string]func(context.Context, ra.Act) (*countersign.Revocation, error){"Suspend": w.Suspend, "Reactivate": w.Reactivate, "Retire": w.Retire} {
		_, err := act(t.Context(), ra.Act{Device: "pump-1"})
		kit.WantCode(t, err, countersign.Unavailable)
		if msg := countersign.Public(err).Message; !strings.Contains(msg, "not recorded") {
			t.Errorf("%s: got message %q, want it to say that nothing was recorded", name, msg)
		}
	}
	_, err = w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-1"})
	kit.WantCode(t, err, countersign.Unavailable)
	if msg := countersign.Public(err).Message; !strings.Contains(msg, "not recorded") {
		t.Errorf("Revoke: got message %q", msg)
	}
}

func TestActThatIsNotRecordedSaysSo(t *testing.T) {
	db, err := store.Open(t.Context(), store.Options{URL: storetest.SQLiteURL(t), Now: time.Now, MaxBytes: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	w := newWorld(t, db)
	cert := w.active(t, "pump-1")
	pending := w.renew(t, cert, kit.Key(t))
	free := full(t, db)
	for range 1000 { // until the pages that are there are full too
		if _, err = w.Suspend(t.Context(), ra.Act{Device: "pump-1"}); err != nil {
			break
		}
		w.takeCuts()
		if _, err = w.Reactivate(t.Context(), ra.Act{Device: "pump-1"}); err != nil {
			break
		}
	}
	kit.WantCode(t, err, countersign.Unavailable)
	if p := countersign.Public(err); p.RetryAfter == 0 || p.Next == "" || p.Message != "this was not recorded and is not in force: the database cannot be written now" {
		t.Errorf("got %+v, want it to say that nothing is in force", p)
	}
	if cuts := w.takeCuts(); len(cuts) != 0 {
		t.Errorf("got cuts %+v of what was not recorded", cuts)
	}
	c, dev := w.record(t, cert), w.device(t, "pump-1")
	if (c.State == countersign.CertHeld) != (dev.State == countersign.DeviceSuspended) {
		t.Errorf("got certificate %s and device %s: half of it was recorded", c.State, dev.State)
	}
	free()
	if dev.State == countersign.DeviceSuspended {
		if _, err := w.Reactivate(t.Context(), ra.Act{Device: "pump-1"}); err != nil {
			t.Fatal(err)
		}
	}
	w.use(t, pending)
}
