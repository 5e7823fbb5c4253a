package server_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/store"
)

// fleetOf is how many devices BenchmarkLists has. A tenth of them has two certificates, and
// each has three events.
const fleetOf = 1_000_000

// listTries is how often each list is read: enough for a median.
const listTries = 9

// BenchmarkLists measures pages of lists and filters at a million devices on SQLite, as an
// operator waits for them: HTTP and JSON are in it. It fills 2 GiB, for some minutes; run it
// with -bench Lists -benchtime 1x.
func BenchmarkLists(b *testing.B) {
	s := countersigntest.Start(b)
	s.Stop()
	fillFleet(b, "sqlite:"+s.Dir+"/countersign.db")
	s.Restart(b)
	soon, ago := time.Now().Add(72*time.Hour).UTC().Format(time.RFC3339), time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	for _, path := range []string{
		"devices", "devices?fleet=default", "devices?fleet=rare", "devices?state=active", "devices?state=retired",
		"devices?fleet=default&state=retired", "devices?fleet=rare&state=registered",
		"certificates", "certificates?state=active", "certificates?state=held", "certificates?state=revoked", "certificates?device=device-1500000",
		"certificates?expires_before=SOON", "certificates?state=active&expires_before=SOON",
		"events", "events?order=desc", "events?type=fleet.saved", "events?device=device-1500000", "events?device=device-1500000&type=session.opened",
		"events?since=AGO", "events?since=AGO&order=desc", "events?since=AGO&type=session.opened",
		"tokens", "credentials?kind=key", "credentials?fleet=default", "credentials?fleet=rare", "credentials?device=device-1100000", "doctor",
	} {
		b.Run(path, func(b *testing.B) {
			where := s.Admin.BaseURL + api.Base + "/" + strings.NewReplacer("SOON", url.QueryEscape(soon), "AGO", url.QueryEscape(ago)).Replace(path)
			var all []time.Duration
			for b.Loop() {
				for range listTries {
					all = append(all, timeOf(b, s.Admin.HTTP, where))
				}
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "ms-p50")
			b.ReportMetric(float64(all[len(all)-1].Microseconds())/1000, "ms-max")
		})
	}
}

// timeOf returns how long a page took to its last octet.
func timeOf(b *testing.B, client *http.Client, where string) time.Duration {
	b.Helper()
	began := time.Now()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, where, nil)
	if err != nil {
		b.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
		b.Fatalf("%s: %d, %v", where, res.StatusCode, err)
	}
	return time.Since(began)
}

// fillFleet writes a fleet by SQL. The last hundred devices differ from the others; the log
// counts as sealed, without a chain.
func fillFleet(b *testing.B, where string) {
	b.Helper()
	db, err := store.Open(b.Context(), store.Options{URL: where, Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }() // SQLite keeps what was committed
	const hour = 3_600_000_000
	now := time.Now().UnixMicro()
	numbers := func(n int) string {
		return fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1000000 UNION ALL SELECT i + 1 FROM n WHERE i < %d) `, 1000000+n-1)
	}
	pick := func(common string, others ...string) string {
		var s strings.Builder
		for k, o := range others {
			fmt.Fprintf(&s, " WHEN i >= 1999900 AND i < 2000000 AND i %% %d = %d THEN '%s'", len(others), k, o)
		}
		return "CASE" + s.String() + " ELSE '" + common + "' END"
	}
	fleet, device := pick("default", "rare"), "'device-' || (1000000 + i % 1000000)"
	for _, text := range []string{
		`UPDATE event SET at = 1`,
		`INSERT INTO fleet (name, issuer, profile, methods, overlap, trust_domain, created_at, updated_at, rules)
			SELECT 'rare', issuer, profile, methods, overlap, trust_domain, created_at, updated_at, rules FROM fleet WHERE name = 'default'`,
		numbers(fleetOf) + `INSERT INTO device (id, folded, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
			SELECT ` + device + `, ` + device + `, ` + fleet + `, ` + pick("active", "registered", "pending", "suspended", "retired") + `, '', '', '', 0, 1, 1, 1, '' FROM n`,
		numbers(fleetOf+fleetOf/10) + fmt.Sprintf(`INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor,
				evidence, method, key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
			SELECT lower(hex(randomblob(12))), (SELECT issuer FROM fleet WHERE name = 'default'), %s, %s, 'device', %s, '', 0, FALSE, '',
				'', 'token', hex(randomblob(32)), hex(randomblob(32)), 1, CASE WHEN i %% 2 = 0 THEN %d - i ELSE %d + i END, 1, 1, %d + i, 1, 0, randomblob(450) FROM n`,
			device, fleet, pick("active", "pending", "superseded", "held", "revoked"), now, now+1440*hour, now+hour),
		numbers(fleetOf/5) + `INSERT INTO credential (id, kind, lookup, second, fleet, device, label, not_before, expires_at, uses_max, uses, per_minute,
				networks, devices, state, reason, created_by, created_at)
			SELECT 'c' || i, CASE WHEN i >= 1199900 THEN 'key' ELSE 'token' END, hex(randomblob(32)), '', CASE WHEN i >= 1199900 THEN 'rare' ELSE 'default' END,
				` + device + `, '', 0, 0, 1, 0, 0, 'null', 'null', 'active', '', '', 9000000 - i FROM n`,
		numbers(3*fleetOf) + fmt.Sprintf(`INSERT INTO event (at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data)
			SELECT CASE WHEN i >= 3999990 THEN %d ELSE 1700000000000000 + i END, CASE WHEN i >= 3999990 THEN 'fleet.saved' ELSE 'session.opened' END,
				'system', %s, 'default', '', '', '10.0.0.1:12', 'mqtt', '', '', '' FROM n`, now, device),
		`UPDATE event SET seq = id, hash = x'00' WHERE seq IS NULL`,
		`UPDATE event_head SET seq = (SELECT max(seq) FROM event), id = (SELECT max(id) FROM event), hash = x'00'`,
		`UPDATE event_cursor SET seq = (SELECT max(seq) FROM event)`,
		`INSERT OR REPLACE INTO event_time SELECT id / 2048, max(at) FROM event GROUP BY 1`,
	} {
		err := db.Write(b.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, text)
			return err
		})
		if err != nil {
			b.Fatalf("%s: %v", text, err)
		}
	}
}
