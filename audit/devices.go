package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// deviceRow is a device that is active, suspended or retired.
type deviceRow struct {
	id, fleet, owner  string
	state             countersign.DeviceState
	created, lastSeen time.Time
	left              string // of a retired one: what it could still come in with, certificate, secret or credential
}

func devices() table[deviceRow] {
	return table[deviceRow]{
		name: "devices",
		fields: `d.id, d.fleet, d.owner, d.state, d.created_at, d.last_seen, CASE
			WHEN d.state <> 'retired' THEN ''
			WHEN EXISTS (SELECT 1 FROM certificate c WHERE c.device = d.id AND c.state IN ('pending', 'active', 'superseded')) THEN 'certificate'
			WHEN EXISTS (SELECT 1 FROM device_secret s WHERE s.device = d.id AND s.state = 'active') THEN 'secret'
			WHEN EXISTS (SELECT 1 FROM credential k WHERE k.device = d.id AND k.state = 'active') THEN 'credential'
			ELSE '' END`,
		from: `device d WHERE %s AND d.state IN ('active', 'suspended', 'retired')`,
		key:  []string{"d.id"}, start: []any{""},
		scan: func(rows *sql.Rows, d *deviceRow) error {
			var created, seen int64
			err := rows.Scan(&d.id, &d.fleet, &d.owner, &d.state, &created, &seen, &d.left)
			d.created, d.lastSeen = store.Time(created), store.Time(seen)
			return err
		},
		last: func(d *deviceRow) []any { return []any{d.id} },
	}
}

func (d *deviceRow) finding(reason, format string, args ...any) *Finding {
	return &Finding{
		Reason: reason, Subject: "device:" + d.id, Device: d.id, Fleet: d.fleet, Summary: fmt.Sprintf(format, args...),
		Evidence: map[string]string{"state": string(d.state), "created_at": stamp(d.created)},
	}
}

// lookAtDevices reads all devices once.
func lookAtDevices(ctx context.Context, w *work) error {
	return devices().walk(ctx, w.DB, func(d *deviceRow) error {
		rules := w.fleets[d.fleet].Audit
		if d.state != countersign.DeviceRetired {
			w.looked(1, NeverConnected, Inactive, Orphaned)
		} else {
			w.looked(1, Offboarding)
		}
		for name, f := range map[string]*Finding{
			Inactive: judgeInactive(d, rules, w.now), Orphaned: judgeOrphaned(d), Offboarding: judgeOffboarding(d),
		} {
			if f != nil {
				w.report(name, *f)
			}
		}
		f := judgeUnused(d, rules, w.now)
		if f == nil || !w.wants(NeverConnected) {
			return nil
		}
		// Seldom: its certificate may have been used where no session is opened, as for
		// a renewal or at a broker that asks us.
		used, err := w.certificateUsed(ctx, d.id)
		if err == nil && !used {
			w.report(NeverConnected, *f)
		}
		return err
	})
}

func (w *work) certificateUsed(ctx context.Context, device string) (bool, error) {
	var one int
	err := w.DB.QueryRow(ctx, `SELECT 1 FROM certificate WHERE device = $1 AND used_at > 0 LIMIT 1`, device).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the certificates of %s: %w", device, err)
	}
	return true, nil
}

func judgeUnused(d *deviceRow, r countersign.AuditRules, now time.Time) *Finding {
	age := now.Sub(d.created)
	if d.state != countersign.DeviceActive || !d.lastSeen.IsZero() || age < threshold(r.Unused, defaultUnused) {
		return nil
	}
	return d.finding("DEVICE_NEVER_CONNECTED", "%s has had an identity for %s and never used it", d.id, days(age))
}

func judgeInactive(d *deviceRow, r countersign.AuditRules, now time.Time) *Finding {
	gone := now.Sub(d.lastSeen)
	if d.state != countersign.DeviceActive || d.lastSeen.IsZero() || gone < threshold(r.Inactive, defaultInactive) {
		return nil
	}
	return d.finding("DEVICE_PAST_INACTIVITY_THRESHOLD", "%s was not seen for %s and may still come in", d.id, days(gone)).with("last_seen", stamp(d.lastSeen))
}

func judgeOrphaned(d *deviceRow) *Finding {
	if d.state == countersign.DeviceRetired || d.owner != "" {
		return nil
	}
	return d.finding("DEVICE_WITHOUT_OWNER", "nobody answers for %s", d.id)
}

func judgeOffboarding(d *deviceRow) *Finding {
	reason, ok := map[string]string{
		"certificate": "RETIRED_DEVICE_HAS_CERTIFICATE", "secret": "RETIRED_DEVICE_HAS_SECRET", "credential": "RETIRED_DEVICE_HAS_CREDENTIAL",
	}[d.left]
	if !ok {
		return nil
	}
	return d.finding(reason, "%s is retired and still has a %s", d.id, d.left)
}

// keyRow is a certificate by its public key.
type keyRow struct {
	hash, device, fleet string
	ref                 countersign.CertRef
}

// lookAtKeys reads all certificates in the order of their keys, so that those over
// one key stand together.
func lookAtKeys(ctx context.Context, w *work) error {
	var before keyRow
	told := ""
	return table[keyRow]{
		name: "keys", fields: `c.key_hash, c.serial, c.issuer, c.device, c.fleet`,
		from: `certificate c WHERE %s AND c.device <> '' AND c.state IN ('pending', 'active', 'superseded', 'held')`,
		key:  []string{"c.key_hash", "c.serial", "c.issuer"}, start: []any{"", "", ""},
		scan: func(rows *sql.Rows, k *keyRow) error {
			return rows.Scan(&k.hash, &k.ref.Serial, &k.ref.Issuer, &k.device, &k.fleet)
		},
		last: func(k *keyRow) []any { return []any{k.hash, string(k.ref.Serial), k.ref.Issuer} },
	}.walk(ctx, w.DB, func(k *keyRow) error {
		w.looked(1, KeyReused)
		if k.hash != "" && k.hash == before.hash && k.device != before.device && told != k.hash {
			told = k.hash
			w.report(KeyReused, Finding{
				Reason: "PUBLIC_KEY_SHARED_BY_MULTIPLE_DEVICES", Subject: "device:" + k.device, Device: k.device, Fleet: k.fleet, Cert: k.ref,
				Summary:  fmt.Sprintf("%s and %s have certificates over one public key", before.device, k.device),
				Evidence: map[string]string{"key_sha256": k.hash, "other_device": before.device, "other_certificate": before.ref.String()},
			})
		}
		before = *k
		return nil
	})
}
