package store_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/countersign-iot/countersign/store"
)

// upTo returns the migrations up to a number, as an earlier release had them.
func upTo(t *testing.T, last string) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	from := os.DirFS("migrations")
	names, err := fs.Glob(from, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := fs.ReadFile(from, name)
		if err != nil {
			t.Fatal(err)
		}
		if name[:len(last)] <= last {
			files[name] = &fstest.MapFile{Data: text}
		}
	}
	return files
}

// eachUpgraded fills a database of the release with migrations up to before, by
// statements, and opens it with all migrations.
func eachUpgraded(t *testing.T, before string, fill []string, run func(t *testing.T, db *store.DB)) {
	eachURL(t, func(t *testing.T, url string) {
		old := mustOpenWith(t, url, upTo(t, before))
		for _, text := range fill {
			err := old.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Exec(ctx, text)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		run(t, mustOpenWith(t, url, upTo(t, "9999")))
	})
}

const (
	oldAuthorities = `INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at) VALUES
		('issuing', 'issuing', '', '', 'file:k', 'active', 0), ('maker', 'registered', '', '', '', 'active', 0)`
	oldCertificates = `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence, method,
			key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der) VALUES
		('01', 'maker', 'pump-1', 'f', 'external', 'superseded', '', 0, FALSE, '', '', 'idevid', 'k1', 'f1', 0, 9, 1, 1, 5, 0, 0, ''),
		('4a', 'issuing', 'pump-1', 'f', 'device', 'active', '', 0, FALSE, '01', '', 'certificate', 'k2', 'f2', 0, 9, 2, 2, 0, 0, 0, ''),
		('4b', 'issuing', 'pump-1', 'f', 'device', 'pending', '', 0, FALSE, '4a', '', 'certificate', 'k3', 'f3', 0, 9, 3, 0, 0, 0, 0, '')`
	oldTokens = `INSERT INTO access_token (id, subject, source, fleet, devices, read_only, issued_at, expires_at, revoked_at) VALUES
		('t1', 'pump-1', 'certificate:4a', 'f', 'null', FALSE, 0, 9, 0), ('t2', 'pump-1', 'certificate:99', 'f', 'null', FALSE, 0, 9, 0),
		('t3', 'pump-1', 'secret:4a', 'f', 'null', FALSE, 0, 9, 0)`
)

func TestUpgradeNamesCertificatesByIssuerAndSerial(t *testing.T) {
	t.Parallel()
	eachUpgraded(t, "0009", []string{oldAuthorities, oldCertificates, oldTokens}, func(t *testing.T, db *store.DB) {
		for _, c := range []struct{ query, want string }{
			{`SELECT predecessor_issuer FROM certificate WHERE serial = '01'`, ""},
			{`SELECT predecessor_issuer FROM certificate WHERE serial = '4a'`, "maker"},
			{`SELECT predecessor_issuer FROM certificate WHERE serial = '4b'`, "issuing"},
			{`SELECT source FROM access_token WHERE id = 't1'`, "certificate:issuing/4a"},
			{`SELECT source FROM access_token WHERE id = 't2'`, "certificate:99"},
			{`SELECT source FROM access_token WHERE id = 't3'`, "secret:4a"},
		} {
			var got string
			if err := db.QueryRow(t.Context(), c.query).Scan(&got); err != nil || got != c.want {
				t.Errorf("%s: got %q, %v, want %q", c.query, got, err, c.want)
			}
		}
	})
}

func TestUpgradeRevokesWhatAForkHeldBesideTheOneInUse(t *testing.T) {
	t.Parallel()
	fill := []string{
		oldAuthorities,
		`INSERT INTO profile (name, spec, created_at, updated_at) VALUES ('device', '{}', 0, 0)`,
		`INSERT INTO fleet (name, issuer, profile, methods, overlap, trust_domain, created_at, updated_at) VALUES ('f', 'issuing', 'device', '[]', 0, '', 0, 0)`,
		`INSERT INTO device (id, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr) VALUES
			('forked', 'f', 'suspended', 'whatever it says', '', '', 0, 0, 0, 0, ''), ('held', 'f', 'suspended', 'two holders of one identity', '', '', 0, 0, 0, 0, ''),
			('back', 'f', 'suspended', 'looks odd', '', '', 0, 0, 0, 0, '')`,
		`INSERT INTO event (at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data) VALUES
			(1, 'finding.fork', 'system', 'forked', 'f', '', '', '', '', '', '', ''), (1, 'device.suspended', 'system', 'forked', 'f', '', '', '', '', '', '', ''),
			(1, 'device.suspended', 'operator:ana', 'held', 'f', '', '', '', '', '', 'two holders of one identity', ''),
			(1, 'finding.fork', 'system', 'back', 'f', '', '', '', '', '', '', ''), (1, 'device.suspended', 'system', 'back', 'f', '', '', '', '', '', '', ''),
			(1, 'device.reactivated', 'operator:ana', 'back', 'f', '', '', '', '', '', '', ''), (1, 'device.suspended', 'system', 'back', 'f', '', '', '', '', '', '', '')`,
	}
	for i, device := range []string{"forked", "held", "back"} {
		for j, from := range []string{"superseded", "active", "pending"} {
			fill = append(fill, fmt.Sprintf(`INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence, method,
				key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
				VALUES ('4%d%d', 'issuing', '%s', 'f', 'device', 'held', '%s', 6, FALSE, '', '', '', '', '', 0, 9, 1, 1, 0, 7, 0, '')`, i, j, device, from))
		}
	}
	eachUpgraded(t, "0008", fill, func(t *testing.T, db *store.DB) {
		for _, c := range []struct{ device, want string }{{"forked", "revoked 4,held 6,revoked 4"}, {"held", "held 6,held 6,held 6"}, {"back", "held 6,held 6,held 6"}} {
			var got []string
			for _, from := range []int{0, 1, 2} {
				var s string
				err := db.QueryRow(t.Context(), `SELECT state || ' ' || CAST(reason AS TEXT) FROM certificate WHERE device = $1 AND serial LIKE $2`,
					c.device, fmt.Sprintf("4_%d", from)).Scan(&s)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, s)
			}
			if strings.Join(got, ",") != c.want {
				t.Errorf("%s: got %v, want %s", c.device, got, c.want)
			}
		}
		var events, recent int
		err := db.QueryRow(t.Context(), `SELECT count(*), coalesce(sum(CASE WHEN at > 1700000000000000 AND device = 'forked' AND serial IN ('400', '402')
			AND data = '{"reason":"superseded"}' THEN 1 ELSE 0 END), 0) FROM event WHERE type = 'certificate.revoked'`).Scan(&events, &recent)
		if err != nil || events != 2 || recent != 2 {
			t.Errorf("got %d events of revocations, %d as they should be (%v), want two of the fork", events, recent, err)
		}
	})
}

// TestUpgradeKeepsQueuedMessages asserts that a message which waited is a page of its own,
// and that PUBREL stays due for one whose PUBREC had come.
func TestUpgradeKeepsQueuedMessages(t *testing.T) {
	eachUpgraded(t, "0018", []string{
		`INSERT INTO mqtt_queue (session, seq, qos, retain, released, expires, topic, props, payload, sub_ids, octets)
			VALUES (1, 7, 1, 0, 0, 0, 't', '', 'a', '', 130), (1, 8, 2, 0, 1, 0, 't', '', 'b', '', 130)`,
	}, func(t *testing.T, db *store.DB) {
		for _, c := range []struct{ query, want string }{
			{`SELECT count(*) || '' FROM mqtt_queue WHERE upto = seq AND n = 1 AND octets = 130 AND more IS NULL`, "2"},
			{`SELECT seq || ' ' || upto || ' ' || gone FROM mqtt_mark WHERE session = 1`, "8 8 0"},
		} {
			var got string
			if err := db.QueryRow(t.Context(), c.query).Scan(&got); err != nil || got != c.want {
				t.Errorf("%s: got %q, %v, want %q", c.query, got, err, c.want)
			}
		}
	})
}
