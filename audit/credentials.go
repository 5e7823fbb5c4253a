package audit

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// manyUses of one credential are more than a line makes in a shift.
	manyUses = 1000
	// farEnd is an end that nobody will remember.
	farEnd = 90 * 24 * time.Hour
	// boundsMissing of the four is a credential without bounds.
	boundsMissing = 3
	// leakWindow is how far back a sight of a credential in wrong hands is looked for:
	// whoever let it be for so long has decided to.
	leakWindow = 365 * 24 * time.Hour
	// tokenUnused is for how long an operator token may lie about.
	tokenUnused = 90 * 24 * time.Hour
	// tokenLife is the longest life of a token that may do everything.
	tokenLife = 180 * 24 * time.Hour
)

// credentialRow is an enrollment credential that works.
type credentialRow struct {
	id, kind, fleet, device, label string
	usesMax, uses                  int64
	networks, devices              []string
	created, expires               time.Time
}

func credentials() table[credentialRow] {
	return table[credentialRow]{
		name:   "credentials",
		fields: `id, kind, fleet, device, label, uses_max, uses, networks, devices, created_at, expires_at`,
		from:   `credential WHERE %s AND state = 'active'`,
		key:    []string{"id"}, start: []any{""},
		scan: func(rows *sql.Rows, c *credentialRow) error {
			var networks, devices string
			var created, expires int64
			err := rows.Scan(&c.id, &c.kind, &c.fleet, &c.device, &c.label, &c.usesMax, &c.uses, &networks, &devices, &created, &expires)
			if err != nil {
				return err
			}
			c.created, c.expires = store.Time(created), store.Time(expires)
			if err := json.Unmarshal([]byte(networks), &c.networks); err != nil {
				return fmt.Errorf("decode the networks of credential %s: %w", c.id, err)
			}
			if err := json.Unmarshal([]byte(devices), &c.devices); err != nil {
				return fmt.Errorf("decode the devices of credential %s: %w", c.id, err)
			}
			return nil
		},
		last: func(c *credentialRow) []any { return []any{c.id} },
	}
}

func (c *credentialRow) finding(reason, format string, args ...any) *Finding {
	f := &Finding{
		Reason: reason, Subject: "credential:" + c.id, Fleet: c.fleet, Device: c.device, Summary: fmt.Sprintf(format, args...),
		Evidence: map[string]string{"kind": c.kind, "label": c.label, "created_at": stamp(c.created), "uses": fmt.Sprint(c.uses)},
	}
	if !c.expires.IsZero() {
		f.Evidence["expires_at"] = stamp(c.expires)
	}
	return f
}

// name is how a person calls the credential.
func (c *credentialRow) name() string {
	if c.label != "" {
		return c.kind + " " + c.label
	}
	return c.kind + " " + c.id
}

// ended reports whether it works no more by itself: too old, or spent.
func (c *credentialRow) ended(now time.Time) bool {
	return !c.expires.IsZero() && !c.expires.After(now) || c.usesMax > 0 && c.uses >= c.usesMax
}

// lookAtCredentials reads all enrollment credentials once.
func lookAtCredentials(ctx context.Context, w *work) error {
	leaks, err := w.leaks(ctx)
	if err != nil {
		return err
	}
	return credentials().walk(ctx, w.DB, func(c *credentialRow) error {
		if c.ended(w.now) {
			return nil
		}
		w.looked(1, ClaimUnbounded, CredentialLeaked)
		if f := judgeBounds(c, w.fleets[c.fleet], w.now); f != nil {
			w.report(ClaimUnbounded, *f)
		}
		if l, ok := leaks[c.id]; ok && l.at.After(c.created) {
			w.report(CredentialLeaked, *c.finding("CREDENTIAL_SEEN_IN_WRONG_HANDS", "%s: %s; it still works", c.name(), l.why).
				with("seen_at", stamp(l.at)).with("seen_from", l.remote))
		}
		return nil
	})
}

// judgeBounds counts the bounds that a credential for many devices lacks. What the
// fleet's rules bound is bounded.
func judgeBounds(c *credentialRow, r countersign.Rules, now time.Time) *Finding {
	if c.device != "" || c.usesMax == 1 {
		return nil
	}
	var missing []string
	if (c.usesMax == 0 || c.usesMax > manyUses) && !slices.Contains(r.Approval, countersign.Method(c.kind)) {
		missing = append(missing, "uses")
	}
	if len(c.networks) == 0 && len(r.Networks) == 0 {
		missing = append(missing, "networks")
	}
	if len(c.devices) == 0 && !slices.Contains(r.Registered, countersign.Method(c.kind)) {
		missing = append(missing, "devices")
	}
	if c.expires.IsZero() || c.expires.Sub(now) > farEnd {
		missing = append(missing, "end")
	}
	if len(missing) < boundsMissing {
		return nil
	}
	f := c.finding("CREDENTIAL_WITHOUT_BOUNDS", "%s admits devices to fleet %s with no bound on %s", c.name(), c.fleet, strings.Join(missing, ", ")).
		with("unbounded", strings.Join(missing, ","))
	if len(missing) > boundsMissing {
		f.Severity = countersign.SeverityHigh
	}
	return f
}

// leak is the last sight of a credential in wrong hands.
type leak struct {
	at          time.Time
	why, remote string
}

// leaks reads from the log which credentials were seen in wrong hands.
func (w *work) leaks(ctx context.Context) (map[string]leak, error) {
	found := map[string]leak{}
	if !w.wants(CredentialLeaked) {
		return found, nil
	}
	for _, kind := range []countersign.EventType{countersign.FindingClaim, countersign.FindingGroupKey} {
		err := w.recent(ctx, kind, leakWindow, func(e *countersign.Event) {
			id := e.Data["credential"]
			if _, later := found[id]; id != "" && !later && len(found) < maxFound {
				found[id] = leak{e.At, e.Reason, e.Remote}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// secretRow is a secret that is kept for long: a connection secret, or a symmetric
// enrollment key.
type secretRow struct {
	id, kind, device, fleet string
	created                 time.Time
}

// lookAtSecrets looks at the age of secrets.
func lookAtSecrets(ctx context.Context, w *work) error {
	scan := func(rows *sql.Rows, s *secretRow) error {
		var created int64
		err := rows.Scan(&s.id, &s.kind, &s.device, &s.fleet, &created)
		s.created = store.Time(created)
		return err
	}
	for _, t := range []table[secretRow]{
		{
			name: "secrets", fields: `s.id, s.kind, s.device, d.fleet, s.created_at`, key: []string{"s.id"},
			from: `device_secret s JOIN device d ON d.id = s.device WHERE %s AND s.state = 'active' AND d.state <> 'retired'`,
		},
		{
			name: "enrollment keys", fields: `id, kind, device, fleet, created_at`, key: []string{"id"},
			from: `credential WHERE %s AND state = 'active' AND kind IN ('key', 'group')`,
		},
	} {
		t.scan, t.start, t.last = scan, []any{""}, func(s *secretRow) []any { return []any{s.id} }
		enrollment := t.name == "enrollment keys"
		err := t.walk(ctx, w.DB, func(s *secretRow) error {
			w.looked(1, SecretAge)
			if f := judgeSecret(s, enrollment, w.fleets[s.fleet].Audit, w.now); f != nil {
				w.report(SecretAge, *f)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func judgeSecret(s *secretRow, enrollment bool, r countersign.AuditRules, now time.Time) *Finding {
	age := now.Sub(s.created)
	if age < threshold(r.SecretAge, defaultSecretAge) {
		return nil
	}
	f := &Finding{
		Reason: "SECRET_PAST_AGE_THRESHOLD", Subject: "device:" + s.device, Device: s.device, Fleet: s.fleet,
		Summary:  fmt.Sprintf("the %s of %s is %s old", s.kind, s.device, days(age)),
		Evidence: map[string]string{"kind": s.kind, "id": s.id, "created_at": stamp(s.created)},
	}
	if enrollment {
		f.Reason, f.Subject = "ENROLLMENT_KEY_PAST_AGE_THRESHOLD", "credential:"+s.id
		f.Summary = fmt.Sprintf("the enrollment %s %s of fleet %s is %s old", s.kind, s.id, s.fleet, days(age))
	}
	return f
}

// lookAtFleets looks at what each fleet accepts at the door.
func lookAtFleets(_ context.Context, w *work) error {
	for name, r := range w.fleets {
		w.looked(1, WeakAuthenticated)
		for _, f := range judgeFleet(name, r.Access) {
			w.report(WeakAuthenticated, f)
		}
	}
	return nil
}

func judgeFleet(name string, a countersign.Access) (list []Finding) {
	found := func(reason, what string) {
		list = append(list, Finding{
			Reason: reason, Subject: "fleet:" + name, Fleet: name, Summary: fmt.Sprintf("fleet %s %s", name, what), Evidence: map[string]string{},
		})
	}
	if a.Guests {
		found("FLEET_ADMITS_GUESTS", "admits clients without any credential")
	}
	if slices.Contains(a.Kinds, countersign.AccessPassword) {
		found("FLEET_ACCEPTS_PASSWORDS", "accepts passwords that people chose")
	}
	return list
}

// tokenRow is an operator token that works.
type tokenRow struct {
	id, name, role         string
	created, expires, used time.Time
}

// lookAtOperatorTokens looks at the tokens of those who administer.
func lookAtOperatorTokens(ctx context.Context, w *work) error {
	return table[tokenRow]{
		name: "operator tokens", fields: `id, name, role, created_at, expires_at, used_at`, from: `operator_token WHERE %s AND NOT revoked`,
		key: []string{"id"}, start: []any{""},
		scan: func(rows *sql.Rows, t *tokenRow) error {
			var created, expires, used int64
			err := rows.Scan(&t.id, &t.name, &t.role, &created, &expires, &used)
			t.created, t.expires, t.used = store.Time(created), store.Time(expires), store.Time(used)
			return err
		},
		last: func(t *tokenRow) []any { return []any{t.id} },
	}.walk(ctx, w.DB, func(t *tokenRow) error {
		if !t.expires.After(w.now) {
			return nil
		}
		w.looked(1, OperatorToken)
		if f := judgeToken(t, w.now); f != nil {
			w.report(OperatorToken, *f)
		}
		return nil
	})
}

func judgeToken(t *tokenRow, now time.Time) *Finding {
	f := &Finding{Subject: "operator_token:" + t.id, Evidence: map[string]string{
		"name": t.name, "role": t.role, "created_at": stamp(t.created), "expires_at": stamp(t.expires),
	}}
	seen := t.created
	if t.used.After(seen) {
		seen = t.used
		f.Evidence["used_at"] = stamp(t.used)
	}
	switch {
	case now.Sub(seen) > tokenUnused:
		f.Reason = "OPERATOR_TOKEN_UNUSED"
		f.Summary = fmt.Sprintf("the operator token %s with role %s was not used for %s", t.name, t.role, days(now.Sub(seen)))
	case t.role == "admin" && t.expires.Sub(t.created) > tokenLife:
		f.Reason = "OPERATOR_TOKEN_LONG_LIVED"
		f.Summary = fmt.Sprintf("the operator token %s may do everything for %s", t.name, days(t.expires.Sub(t.created)))
	default:
		return nil
	}
	return f
}
