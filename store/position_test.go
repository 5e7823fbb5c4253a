package store_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign/store"
)

// migrationsUpTo are the embedded migrations of an earlier version.
func migrationsUpTo(t *testing.T, last string) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	names, err := fs.Glob(os.DirFS("migrations"), "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if name[:4] > last {
			continue
		}
		text, err := os.ReadFile("migrations/" + name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = file(string(text))
	}
	return files
}

// TestPositionsKeepTheOrderOfTheTimes: on a database from before positions, a token
// that was older than its device's revocation remains older, and a newer one newer.
func TestPositionsKeepTheOrderOfTheTimes(t *testing.T) {
	t.Parallel()
	eachURL(t, func(t *testing.T, url string) {
		db := mustOpenWith(t, url, migrationsUpTo(t, "0009"))
		exec := func(q string) {
			t.Helper()
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Exec(ctx, q)
				return err
			})
			if err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
		exec(`INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at) VALUES ('issuing', '', '', 'x', '', '', 1)`)
		exec(`INSERT INTO profile (name, spec, created_at, updated_at) VALUES ('device', '', 1, 1)`)
		for _, fleet := range []string{"a", "b"} {
			exec(`INSERT INTO fleet (name, issuer, profile, methods, overlap, trust_domain, created_at, updated_at) VALUES ('` + fleet + `', 'issuing', 'device', '', 0, '', 1, 1)`)
		}
		for _, d := range []struct {
			id, fleet     string
			revoked, seen int
		}{{"never", "a", 0, 5}, {"gone", "b", 100, 50}, {"back", "b", 100, 150}} {
			exec(fmt.Sprintf(`INSERT INTO device (id, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
				VALUES ('%s', '%s', 'active', '', '', '', %d, 1, 1, %d, '')`, d.id, d.fleet, d.revoked, d.seen))
			for _, at := range []int{99, 100, 101} {
				id := fmt.Sprintf("%s %d", d.id, at)
				exec(fmt.Sprintf(`INSERT INTO certificate VALUES ('%[1]s', 'issuing', '%[2]s', '', '', 'active', '', 0, FALSE, '', '', '', '', '', 0, 0, %[3]d, 0, 0, 0, 0, 'x')`, id, d.id, at))
				exec(fmt.Sprintf(`INSERT INTO credential VALUES ('%[1]s', 'token', '%[1]s', '', NULL, '%[4]s', '%[2]s', '', 0, 0, 1, 0, 0, '', '', 'active', '', '', %[3]d)`, id, d.id, at, d.fleet))
				exec(fmt.Sprintf(`INSERT INTO device_secret VALUES ('%[1]s', '%[2]s', '', '', 'x', NULL, 'active', '', '', %[3]d, 0, 0)`, id, d.id, at))
				exec(fmt.Sprintf(`INSERT INTO access_token VALUES ('%[1]s', '%[2]s', '', '', '', FALSE, %[3]d, 0, 0)`, id, d.id, at))
			}
		}
		for _, at := range []int{99, 101} {
			exec(fmt.Sprintf(`INSERT INTO credential VALUES ('group %[1]d', 'group', 'group %[1]d', '', NULL, 'b', '', '', 0, 0, 1, 0, 0, '', '', 'active', '', '', %[1]d)`, at))
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db, err := store.Open(t.Context(), store.Options{URL: url, Now: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		list := func(q string) string {
			t.Helper()
			rows, err := db.Query(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = rows.Close() }()
			var all []string
			for rows.Next() {
				var id string
				if err := rows.Scan(&id); err != nil {
					t.Fatal(err)
				}
				all = append(all, id)
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
			return strings.Join(all, ", ")
		}
		want := "back 101, gone 101, never 100, never 101, never 99"
		for table, columns := range map[string][3]string{
			"certificate": {"serial", "device", "issued_pos"}, "credential": {"id", "device", "created_pos"},
			"device_secret": {"id", "device", "created_pos"}, "access_token": {"id", "subject", "issued_pos"},
		} {
			got := list(fmt.Sprintf(`SELECT t.%s FROM %s t JOIN device d ON d.id = t.%s WHERE t.%s >= d.revoked_pos ORDER BY 1`, columns[0], table, columns[1], columns[2]))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("newer rows of %s (-want +got):\n%s", table, diff)
			}
		}
		if got := list(`SELECT id FROM device WHERE seen_pos >= revoked_pos ORDER BY id`); got != "back, never" {
			t.Errorf("devices seen since: got %q", got)
		}
		if got := list(`SELECT id FROM credential WHERE kind = 'group' AND created_pos >= 1`); got != "group 101" {
			t.Errorf("group keys that are newer than each loss: got %q", got)
		}
	})
}
