package server_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/server"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
	"github.com/countersign-iot/countersign/watermark"
)

// copyFile copies a file of a stopped server.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// busy makes events.
func busy(t *testing.T, admin *sdk.Admin, prefix string, n int) {
	t.Helper()
	for i := range n {
		if _, err := admin.CreateDevice(t.Context(), api.NewDevice{ID: fmt.Sprintf("%s-%d", prefix, i)}); err != nil {
			t.Fatal(err)
		}
	}
}

// crlNumber waits for the list of the issuing authority and returns its number.
func crlNumber(t *testing.T, admin *sdk.Admin) (n int64) {
	t.Helper()
	kit.Eventually(t, "a CRL", func() bool {
		d, err := admin.Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range d.Checks {
			if c.Name == "crl issuing" {
				_, err := fmt.Sscanf(c.Message, "#%d ", &n)
				return err == nil
			}
		}
		return false
	})
	return n
}

// restored founds a server, takes a backup of its database, lets it live on, and puts
// the backup back.
func restored(t *testing.T) config.Config {
	t.Helper()
	cfg := production(t)
	initialize(t, cfg, ca.Plan{Name: "One"})
	admin, stop := serve(t, cfg)
	busy(t, admin, "before", 3)
	number := crlNumber(t, admin)
	stop()
	copyFile(t, cfg.Path("countersign.db"), cfg.Path("backup"))
	for range 3 {
		// As a revocation that no list shows yet: the next start publishes one.
		execute(t, cfg, `INSERT INTO crl_change (issuer, shard, serial) VALUES ('issuing', 0, '01')`)
		admin, stop = serve(t, cfg)
		busy(t, admin, "after"+time.Now().Format("150405.000000000")[7:], 4)
		number++
		kit.Eventually(t, "the next CRL", func() bool { return crlNumber(t, admin) == number })
		stop()
	}
	copyFile(t, cfg.Path("backup"), cfg.Path("countersign.db"))
	return cfg
}

func TestARestoredDatabaseIsRefusedAndCanBeAccepted(t *testing.T) {
	cfg := restored(t)
	err := starts(t, cfg, server.Options{})
	if !errors.Is(err, server.ErrRestored) {
		t.Fatalf("New on a restored database: got %v, want ErrRestored", err)
	}
	for _, want := range []string{"the log ends at event ", " are missing", "CRL issuing/0 is at number ", " and was at "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("New on a restored database: got %q, want it to say %q", err, want)
		}
	}
	lost, err := server.AcceptRestored(t.Context(), cfg, server.Options{By: "operator:local:ann"})
	if err != nil || lost.Events == 0 || len(lost.Lists) == 0 {
		t.Fatalf("AcceptRestored: got %+v, %v, want what is lost", lost, err)
	}
	if _, err := server.AcceptRestored(t.Context(), cfg, server.Options{}); countersign.CodeOf(err) != countersign.Conflict {
		t.Errorf("AcceptRestored again: got %v, want Conflict", err)
	}
	admin, _ := serve(t, cfg)
	kit.Eventually(t, "a CRL above those that were published", func() bool { return crlNumber(t, admin) > lost.Seen.Lists["issuing/0"] })
	v, err := admin.VerifyLog(t.Context())
	if err != nil || !v.Intact || v.Lost != lost.Events {
		t.Errorf("VerifyLog: got %+v, %v, want it intact, %d lost", v, err, lost.Events)
	}
	checkRestoreShows(t, admin)
}

// checkRestoreShows looks for an accepted restore where an operator looks.
func checkRestoreShows(t *testing.T, admin *sdk.Admin) {
	t.Helper()
	d, err := admin.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	shown := false
	for _, c := range d.Checks {
		shown = shown || c.Name == "state" && c.Level == api.LevelWarn && strings.Contains(c.Message, "are missing")
	}
	if !shown {
		t.Errorf("doctor: got %+v, want the restore", d.Checks)
	}
	kit.Eventually(t, "an alert of the restore", func() bool {
		for a, err := range admin.Alerts(t.Context(), api.AlertFilter{Rule: "database_restored"}) {
			if err != nil {
				t.Fatal(err)
			}
			return a.Severity == "critical"
		}
		return false
	})
	run, err := admin.StartAudit(t.Context(), api.NewAudit{Checks: []string{"LOGGING_DISABLED_CHECK"}})
	if err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "a finding of the audit", func() bool {
		for f, err := range admin.AuditFindings(t.Context(), run.ID, api.AuditFindingFilter{}) {
			if err != nil {
				t.Fatal(err)
			}
			if f.Reason == "DATABASE_RESTORED" {
				return true
			}
		}
		return false
	})
}

// TestADatabaseThatWentAnotherWayIsRefused puts a database back that was restored
// elsewhere and lived on there: it is long enough, and not the one that was seen.
func TestADatabaseThatWentAnotherWayIsRefused(t *testing.T) {
	cfg := restored(t)
	copyFile(t, cfg.Path(watermark.Name), cfg.Path("kept"))
	if err := os.Remove(cfg.Path(watermark.Name)); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		admin, stop := serve(t, cfg)
		busy(t, admin, "other"+time.Now().Format("150405.000000000")[7:], 8)
		crlNumber(t, admin)
		stop()
	}
	copyFile(t, cfg.Path("kept"), cfg.Path(watermark.Name))
	err := starts(t, cfg, server.Options{})
	if !errors.Is(err, server.ErrRestored) || !strings.Contains(err.Error(), "is not the one that was seen") {
		t.Errorf("New: got %v, want ErrRestored by a hash", err)
	}
}

func TestAMissingWatermarkIsSaid(t *testing.T) {
	cfg := production(t)
	initialize(t, cfg, ca.Plan{Name: "One"})
	admin, stop := serve(t, cfg)
	if d := state(t, admin); d.Level != api.LevelOK {
		t.Errorf("doctor before: got %+v", d)
	}
	stop()
	info, err := os.Stat(cfg.Path(watermark.Name))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the watermark: got %v, %v, want mode 0600", info, err)
	}
	if err := os.Remove(cfg.Path(watermark.Name)); err != nil {
		t.Fatal(err)
	}
	admin, stop = serve(t, cfg)
	if d := state(t, admin); d.Level != api.LevelWarn {
		t.Errorf("doctor: got %+v, want a warning", d)
	}
	kit.Eventually(t, "the event", func() bool {
		for _, err := range admin.Events(t.Context(), api.EventFilter{Type: "watermark.missing"}, api.Order{}) {
			return err == nil
		}
		return false
	})
	stop()
	if err := starts(t, cfg, server.Options{}); err != nil {
		t.Errorf("New with the new one: %v", err)
	}
}

func state(t *testing.T, admin *sdk.Admin) api.Check {
	t.Helper()
	d, err := admin.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range d.Checks {
		if c.Name == "state" {
			return c
		}
	}
	t.Fatal("doctor has no check of the state")
	return api.Check{}
}

func TestAWatermarkThatIsNotOursIsRefused(t *testing.T) {
	cfg, other := production(t), production(t)
	for i, c := range []config.Config{cfg, other} {
		initialize(t, c, ca.Plan{Name: fmt.Sprint("Plan ", i)})
		_, stop := serve(t, c)
		stop()
	}
	text, err := os.ReadFile(cfg.Path(watermark.Name))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(other.Path(watermark.Name))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"changed":           strings.Replace(string(text), `"seq": `, `"seq": 9`, 1),
		"empty":             "",
		"of another server": string(theirs),
		"of a newer form":   strings.Replace(string(text), `"version": 1`, `"version": 2`, 1),
	} {
		write(t, cfg.Path(watermark.Name), b)
		if err := starts(t, cfg, server.Options{}); countersign.CodeOf(err) != countersign.Conflict || !strings.Contains(err.Error(), watermark.Name) {
			t.Errorf("%s: got %v, want it refused by its name", name, err)
		}
	}
	write(t, cfg.Path(watermark.Name), string(text))
	if err := starts(t, cfg, server.Options{}); err != nil {
		t.Errorf("as it was: %v", err)
	}
}

// TestNodesMayBeBehindTheDatabase holds that what another node did in the meantime is
// no reason to refuse.
func TestNodesMayBeBehindTheDatabase(t *testing.T) {
	one, two := production(t), production(t)
	one.Database = config.Database(storetest.PostgresURL(t))
	two.Database = one.Database
	initialize(t, one, ca.Plan{Name: "One"})
	if err := os.MkdirAll(two.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(two.Path("keys"), os.DirFS(one.Path("keys"))); err != nil {
		t.Fatal(err)
	}
	_, stopTwo := serve(t, two)
	stopTwo()
	admin, stop := serve(t, one)
	busy(t, admin, "pump", 5)
	stop()
	admin, _ = serve(t, two)
	if d := state(t, admin); d.Level != api.LevelOK {
		t.Errorf("doctor of the node that comes back: got %+v", d)
	}
}

func TestALostSealingKeyCanBeReplaced(t *testing.T) {
	cfg := production(t)
	initialize(t, cfg, ca.Plan{Name: "One"})
	if _, err := server.ReplaceSealingKey(t.Context(), cfg, server.Options{}); countersign.CodeOf(err) != countersign.Conflict {
		t.Errorf("ReplaceSealingKey of one that fits: got %v, want Conflict", err)
	}
	if err := os.Remove(cfg.Path("keys/seal.key")); err != nil {
		t.Fatal(err)
	}
	if err := starts(t, cfg, server.Options{}); !errors.Is(err, server.ErrSealingKey) {
		t.Errorf("New without it: got %v, want ErrSealingKey", err)
	}
	if _, err := server.ReplaceSealingKey(t.Context(), cfg, server.Options{By: "operator:local:ann"}); err != nil {
		t.Fatal(err)
	}
	admin, _ := serve(t, cfg)
	kit.Eventually(t, "the event", func() bool {
		for e, err := range admin.Events(t.Context(), api.EventFilter{Type: "sealing_key.replaced"}, api.Order{}) {
			return err == nil && e.Actor == "operator:local:ann"
		}
		return false
	})
}

// TestADatabaseThatGoesBackUnderANodeIsSaid sets the numbers of the CRLs back while a
// node runs, as a failover to a standby that was behind does.
func TestADatabaseThatGoesBackUnderANodeIsSaid(t *testing.T) {
	t.Parallel()
	cfg := production(t)
	cfg.Database = config.Database(storetest.PostgresURL(t))
	initialize(t, cfg, ca.Plan{Name: "One"})
	admin, stop := serve(t, cfg)
	crlNumber(t, admin)
	db := storetest.OpenURL(t, string(cfg.Database))
	number := func(n int) {
		t.Helper()
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE crl SET number = $1 WHERE issuer = 'issuing'`, n)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	number(500)
	kit.Eventually(t, "the watermark", func() bool {
		text, err := os.ReadFile(cfg.Path(watermark.Name))
		return err == nil && strings.Contains(string(text), `"issuing/0": 500`)
	})
	number(1)
	kit.Eventually(t, "the event and its alert", func() bool {
		for e, err := range admin.Events(t.Context(), api.EventFilter{Type: "database.set_back"}, api.Order{}) {
			if err != nil || e.Data["crl issuing/0"] != "500 -> 1" {
				t.Fatalf("got %+v, %v", e, err)
			}
			for a, err := range admin.Alerts(t.Context(), api.AlertFilter{Rule: "database_restored"}) {
				return err == nil && a.Severity == "critical"
			}
		}
		return false
	})
	kit.Eventually(t, "a CRL above those that were published", func() bool { return crlNumber(t, admin) > 500 })
	if d := state(t, admin); d.Level != api.LevelFail {
		t.Errorf("doctor: got %+v, want a failure", d)
	}
	stop()
}
